"""The course of one evaluation: gate in fp32, gate as served, held-out score, verdict. Writes no state."""

import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from openmint.clock import Clock
from openmint.errors import BadAdapter, BadDataset, EngineFailed, LoadFailed, OpenmintError
from openmint.identifiers import new_id
from openmint_evaluator.bench import Bench, BenchBuilder
from openmint_evaluator.checks import Check, not_checked
from openmint_evaluator.engine_access import EngineAccess, EngineLease
from openmint_evaluator.evaluation_files import EvaluationFiles
from openmint_evaluator.gate import PARITY_MEAN, SERVING_MEAN, Answers, engine_trouble, parity_checks, serving_checks
from openmint_evaluator.measuring import ask_probes
from openmint_evaluator.report import Report, ScoreBasis, ServingPath
from openmint_evaluator.score_cache import ScoreCache
from openmint_evaluator.scoring import HeldOutScoring
from openmint_evaluator.subject import Subject
from openmint_evaluator.verdict import Verdict, decide


@dataclass(frozen=True, slots=True)
class Pools:
    """Where evaluations are served. `gate` None: no fp32 engine fits, the serving check alone decides."""

    gate: str | None
    serve: str


@dataclass(slots=True)
class Findings:
    """What has been measured so far."""

    checks: list[Check] = field(default_factory=list[Check])
    scores: list[ScoreBasis] = field(default_factory=list[ScoreBasis])
    gate_path: ServingPath | None = None
    serve_path: ServingPath | None = None
    bench: Bench | None = None

    @property
    def has_failed(self) -> bool:
        """Whether a rule is broken already; later stages would only cost time."""
        return any(check.outcome == "fails" for check in self.checks)


class Evaluator:
    """Evaluates revisions, one after the other."""

    def __init__(
        self,
        files: EvaluationFiles,
        engines: EngineAccess,
        benches: BenchBuilder,
        pools: Pools,
        concurrency: int,
        clock: Clock,
    ) -> None:
        self._files = files
        self._engines = engines
        self._benches = benches
        self._pools = pools
        self._concurrency = concurrency
        self._clock = clock
        self._scores = ScoreCache()

    async def evaluate(self, subject: Subject) -> Report:
        """Measure and decide.

        What is wrong with the revision or its data becomes a rejection with its reason. Everything that a retry can
        help (engines, store, reference child) is raised.
        """
        started = self._clock.monotonic_s()
        findings = Findings()
        with tempfile.TemporaryDirectory(prefix="openmint-evaluation-") as scratch:
            try:
                await self._measure(subject, findings, Path(scratch))
            except (BadAdapter, BadDataset, LoadFailed) as error:
                findings.checks.append(_failure(error))
        is_no_op = findings.bench is not None and findings.bench.folder.is_no_op
        verdict = decide(findings.checks, is_no_op)
        elapsed_ms = (self._clock.monotonic_s() - started) * 1000
        return build_report(new_id(), subject, findings, verdict, self._started_at(elapsed_ms), elapsed_ms)

    async def _measure(self, subject: Subject, findings: Findings, scratch: Path) -> None:
        bench = findings.bench = await self._benches.build(subject, scratch)
        findings.checks += bench.notes
        if self._pools.gate is None:
            findings.checks.append(not_checked("parity", "no fp32 engine is set up; the serving check alone decides"))
        else:
            async with self._engines.lease(subject.revision, subject.base, self._pools.gate) as lease:
                findings.gate_path = lease.path
                answers = await self._ask(lease, bench, PARITY_MEAN)
            findings.checks += parity_checks(answers, bench.reference, bench.folder.is_no_op)
        if findings.has_failed:
            findings.checks.append(not_checked("serving", "the fp32 gate has failed already"))
            findings.checks.append(not_checked("held_out_score", "the fp32 gate has failed already"))
            return
        async with self._engines.lease(subject.revision, subject.base, self._pools.serve) as lease:
            findings.serve_path = lease.path
            answers = await self._ask(lease, bench, SERVING_MEAN)
            findings.checks += serving_checks(answers, bench.reference, bench.folder.is_no_op)
            await self._score(subject, bench, findings, lease)

    async def _ask(self, lease: EngineLease, bench: Bench, base_bound: float) -> Answers:
        answers = await ask_probes(lease.adapter, lease.base, bench.probes, self._concurrency)
        trouble = engine_trouble(answers, bench.reference, base_bound)
        if trouble:
            # Not the revision's fault: another engine, or this one after a restart, may do better.
            raise EngineFailed(f"engine {lease.path.engine} of pool {lease.path.pool} is not fit to judge: {trouble}")
        return answers

    async def _score(self, subject: Subject, bench: Bench, findings: Findings, lease: EngineLease) -> None:
        if bench.held_out is None:
            findings.checks.append(not_checked("held_out_score", "the job gives no held-out data"))
        elif findings.has_failed:
            findings.checks.append(not_checked("held_out_score", "the serving check has failed already"))
        else:
            reports = [await self._files.read_report(key) for key in subject.report_keys]
            self._scores.keep_reports(report for report in reports if report is not None)
            scoring = HeldOutScoring(subject, bench, bench.held_out, self._scores, self._concurrency)
            try:
                findings.checks += await scoring.run(lease, self._engines, self._pools.serve)
            finally:
                findings.scores += scoring.scores

    def _started_at(self, elapsed_ms: float) -> datetime:
        return datetime.fromtimestamp(self._clock.wall_s() - elapsed_ms / 1000, UTC)


def build_report(
    evaluation_id: UUID,
    subject: Subject,
    findings: Findings,
    verdict: Verdict,
    started_at: datetime,
    elapsed_ms: float,
) -> Report:
    """The report of a finished evaluation."""
    revision, bench = subject.revision, findings.bench
    return Report(
        evaluation_id=evaluation_id,
        revision_id=revision.revision_id,
        policy=f"{revision.tenant}/{revision.policy}",
        number=revision.number or 0,
        step=revision.step,
        digest=subject.digest,
        base=subject.base.name,
        base_digest=subject.base.digest,
        rank=revision.rank or 0,
        targets=() if bench is None else bench.folder.targets,
        passed=verdict.passed,
        reasons=verdict.reasons,
        checks=tuple(findings.checks),
        scores=tuple(findings.scores),
        probe_tokens=0 if bench is None else bench.probe_tokens,
        probe_digest="" if bench is None else bench.probe_digest,
        gate_path=findings.gate_path,
        serve_path=findings.serve_path,
        reference="" if bench is None else bench.reference_text,
        attempt=revision.tries,
        started_at=started_at,
        evaluation_ms=elapsed_ms,
    )


def report_without_measurement(subject: Subject, verdict: Verdict, now: datetime) -> Report:
    """For a revision that nobody could evaluate."""
    return build_report(new_id(), subject, Findings(), verdict, now, 0.0)


def _failure(error: OpenmintError) -> Check:
    names = {BadAdapter: "adapter_folder", BadDataset: "held_out_data", LoadFailed: "load"}
    words = {
        BadAdapter: "the revision's files are not fit to be loaded",
        BadDataset: "the held-out data can't be scored",
        LoadFailed: "engines refuse the revision",
    }
    kind = next(kind for kind in names if isinstance(error, kind))
    return Check(name=names[kind], outcome="fails", words=f"{words[kind]}: {error.detail}")
