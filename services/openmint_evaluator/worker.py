"""Takes due evaluations one after the other, under a lease, and records their verdicts.

Trouble with engines, store or reference leaves the revision for another try; when the tries are used up it is
rejected, because nobody could say that it is good.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from openmint.catalog import revisions
from openmint.catalog.database import Catalog
from openmint.catalog.rows import EvaluationDraft, JsonObject, Revision
from openmint.catalog.transitions import MAX_TRIES
from openmint.clock import Clock
from openmint.endings import end
from openmint.errors import CallerMistake, Fenced, OpenmintError
from openmint_evaluator.evaluate import Evaluator, report_without_measurement
from openmint_evaluator.evaluation_files import EvaluationFiles
from openmint_evaluator.promotion import promote
from openmint_evaluator.report import Report, summarise
from openmint_evaluator.subject import Subject, read_subject
from openmint_evaluator.verdict import could_not_evaluate

log = structlog.get_logger()

SERVICE = "evaluator"
SUITE = "gate"


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """How long things may take. `retry_s` is the pause after the first failed try, and doubles with each."""

    lease_s: float
    poll_s: float
    retry_s: float
    max_tries: int


class EvaluationWorker:
    """One evaluation at a time. `wake` is called when a fact hints at work; without one it looks every `poll_s`."""

    def __init__(
        self,
        catalog: Catalog,
        files: EvaluationFiles,
        evaluator: Evaluator,
        owner: str,
        limits: WorkerLimits,
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._files = files
        self._evaluator = evaluator
        self._owner = owner
        self._limits = limits
        self._clock = clock
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Look for work now."""
        self._woken.set()

    async def run(self) -> None:
        """Work until cancelled; an evaluation under way is then given back without using up a try."""
        while True:
            self._woken.clear()
            try:
                has_worked = await self.work_once()
            except OpenmintError as error:
                log.warning("evaluation.postponed", error=error.detail, code=error.code)
                has_worked = False
            except Exception:
                # One odd revision must not stop those behind it; its lease runs out and its tries are counted.
                log.exception("evaluation.broke")
                has_worked = False
            if not has_worked:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._limits.poll_s):
                        await self._woken.wait()

    async def work_once(self) -> bool:
        """Claim one due evaluation and finish it. False when nothing was due."""
        async with self._catalog.connection() as conn:
            revision = await revisions.claim_evaluation(conn, self._owner, self._limits.lease_s)
        if revision is None:
            return False
        bound = {"revision": str(revision.revision_id), "policy": f"{revision.tenant}/{revision.policy}"}
        with structlog.contextvars.bound_contextvars(**bound):
            await self._hold_and_evaluate(revision)
        return True

    async def _hold_and_evaluate(self, revision: Revision) -> None:
        evaluation = asyncio.create_task(self._evaluate(revision))
        heartbeat = asyncio.create_task(self._keep_lease(revision))
        try:
            await asyncio.wait({evaluation, heartbeat}, return_when=asyncio.FIRST_COMPLETED)
            if evaluation.done():
                await evaluation
            else:
                # The lease is lost: another evaluator has it, or the revision was quarantined.
                await heartbeat
        except Fenced as error:
            log.warning("evaluation.fenced", error=error.detail)
        except asyncio.CancelledError:
            await end(evaluation)
            with contextlib.suppress(OpenmintError):
                async with self._catalog.connection() as conn:
                    await revisions.release_revision(conn, revision.revision_id, revision.fence)
            raise
        finally:
            await end(evaluation, heartbeat)

    async def _evaluate(self, revision: Revision) -> None:
        async with self._catalog.connection() as conn:
            subject = await read_subject(conn, revision)
        try:
            report = await self._evaluator.evaluate(subject)
        except Fenced:
            raise
        except CallerMistake as error:
            await self._record(subject, self._without_measurement(subject, error.detail))
        except Exception as error:
            await self._try_again(subject, error)
        else:
            await self._record(subject, report)

    async def _try_again(self, subject: Subject, error: Exception) -> None:
        revision = subject.revision
        detail = error.detail if isinstance(error, OpenmintError) else f"{type(error).__name__}: {error}"
        if not isinstance(error, OpenmintError):
            log.exception("evaluation.broke", tries=revision.tries)
        if revision.tries >= min(self._limits.max_tries, MAX_TRIES):
            await self._record(subject, self._without_measurement(subject, detail))
            return
        retry_s = self._limits.retry_s * 2 ** (revision.tries - 1)
        log.warning("evaluation.postponed", tries=revision.tries, retry_s=retry_s, error=detail)
        async with self._catalog.connection() as conn:
            await revisions.heartbeat_revision(conn, revision.revision_id, revision.fence, retry_s)

    def _without_measurement(self, subject: Subject, detail: str) -> Report:
        verdict = could_not_evaluate(subject.revision.tries, detail)
        return report_without_measurement(subject, verdict, datetime.fromtimestamp(self._clock.wall_s(), UTC))

    async def _record(self, subject: Subject, report: Report) -> None:
        """Report to the store, then verdict and promotion in one transaction, then the outcome into the report."""
        revision = subject.revision
        key = await self._files.write_report(report)
        draft = EvaluationDraft(
            evaluation_id=report.evaluation_id,
            suite=SUITE,
            passed=report.passed,
            summary=summarise(report),
            scores=_scores_of(report),
            rests_on=_rests_on(report),
            report_key=key,
        )
        promotion = f"not promoted: the verdict is rejected; the rule is {subject.promotion.rule}"
        async with self._catalog.transaction() as conn:
            await revisions.record_verdict(
                conn, revision.revision_id, revision.fence, report.passed, draft.summary, [draft], service=SERVICE
            )
            if report.passed:
                promotion = await promote(conn, revision, subject.promotion, SERVICE)
        report = report.model_copy(update={"promotion": promotion})
        log.info(
            "evaluation.recorded",
            passed=report.passed,
            reasons=report.reasons,
            promotion=promotion,
            evaluation_ms=round(report.evaluation_ms),
            evaluation_id=str(report.evaluation_id),
        )
        try:
            await self._files.write_report(report)
        except OpenmintError as error:
            # The verdict stands; only the stored report lacks the line about the alias.
            log.warning("report.not_completed", error=error.detail)

    async def _keep_lease(self, revision: Revision) -> None:
        """Until cancelled. Raises: Fenced when another claim holds the revision."""
        while True:
            await asyncio.sleep(self._limits.lease_s / 3)
            try:
                async with self._catalog.connection() as conn:
                    await revisions.heartbeat_revision(conn, revision.revision_id, revision.fence, self._limits.lease_s)
            except Fenced:
                raise
            except OpenmintError as error:
                log.warning("lease.not_renewed", error=error.detail)


def _scores_of(report: Report) -> JsonObject:
    return {
        score.subject: {
            "score": score.score,
            "standard_error": score.standard_error,
            "unit": score.unit,
            "higher_is_better": score.higher_is_better,
            "rows": score.rows,
        }
        for score in report.scores
    }


def _rests_on(report: Report) -> JsonObject:
    body: JsonObject = {
        "revision_digest": report.digest,
        "base": report.base,
        "base_digest": report.base_digest,
        "targets": list(report.targets),
        "probe_digest": report.probe_digest,
        "probe_tokens": report.probe_tokens,
        "reference": report.reference,
        "gate_path": None if report.gate_path is None else report.gate_path.model_dump(),
        "serving_path": None if report.serve_path is None else report.serve_path.model_dump(),
    }
    for score in report.scores:
        if score.subject == "revision":
            body |= {
                "scorer": score.scorer,
                "labels": list(score.labels),
                "prompt_rendering": score.prompt_rendering,
                "dataset_digest": score.dataset_digest,
                "rows": score.rows,
            }
    return body
