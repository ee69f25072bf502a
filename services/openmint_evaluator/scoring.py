"""Held-out scores of the revision, the base and the revision in production, through the serving path."""

from collections.abc import Sequence

from openmint.errors import LoadFailed
from openmint_evaluator.bench import Bench
from openmint_evaluator.checks import Check, not_checked
from openmint_evaluator.comparison import RowScore, standard_error, total_score
from openmint_evaluator.encoded_rows import EncodedDataset
from openmint_evaluator.engine_access import EngineAccess, EngineLease
from openmint_evaluator.measuring import score_rows
from openmint_evaluator.metric import ScoredRows, metric_checks
from openmint_evaluator.report import ScoreBasis, ScoreSubject, ServingPath
from openmint_evaluator.score_cache import CachedScore, ScoreCache, ScoreKey
from openmint_evaluator.scorers import SCORERS, Scorer
from openmint_evaluator.served_model import ServedModel
from openmint_evaluator.subject import Subject


class HeldOutScoring:
    """Scores one subject; `scores` collects what each number rests on."""

    def __init__(
        self, subject: Subject, bench: Bench, held_out: EncodedDataset, cache: ScoreCache, concurrency: int
    ) -> None:
        assert subject.held_out is not None
        self._subject = subject
        self._bench = bench
        self._held_out = held_out
        self._dataset_digest = subject.held_out.digest
        self._scorer: Scorer = SCORERS[subject.spec.scorer]
        self._cache = cache
        self._concurrency = concurrency
        self.scores: list[ScoreBasis] = []

    async def run(self, lease: EngineLease, engines: EngineAccess, pool: str) -> list[Check]:
        """Score what has not been scored before, and apply the job's rules. Raises: as EngineAccess and ServedModel."""
        subject = self._subject
        ours = await self._score("revision", subject.digest, lease.adapter, lease.path, self._bench.folder.targets)
        base = await self._score("base", None, lease.base, lease.path, ())
        production, notes = None, list[Check]()
        if subject.production is not None and subject.production.digest is not None:
            name = f"revision {subject.production.number} in production"
            try:
                rows = await self._score_production(subject.production.digest, lease.path, engines, pool)
                production = ScoredRows(name, rows)
            except LoadFailed as error:
                # A broken revision in production must not keep a good one out.
                notes.append(not_checked("production_score", f"{name} can't be loaded: {error.detail}"))
        return notes + metric_checks(
            subject.spec,
            self._scorer.higher_is_better,
            self._scorer.unit,
            ScoredRows(f"revision {subject.revision.number}", ours),
            ScoredRows(f"the base {subject.base.name}", base),
            production,
        )

    async def _score_production(
        self, digest: str, path: ServingPath, engines: EngineAccess, pool: str
    ) -> Sequence[RowScore]:
        known = self._cache.find(self._key(digest, path))
        if known is not None:
            return self._note("production", digest, known, was_cached=True)
        assert self._subject.production is not None
        async with engines.lease(self._subject.production, self._subject.base, pool) as lease:
            return await self._score("production", digest, lease.adapter, lease.path, ())

    async def _score(
        self, what: ScoreSubject, digest: str | None, model: ServedModel, path: ServingPath, targets: tuple[str, ...]
    ) -> Sequence[RowScore]:
        key = self._key(digest, path)
        known = self._cache.find(key)
        if known is not None:
            return self._note(what, digest, known, was_cached=True, targets=targets)
        rows = await score_rows(model, self._scorer, self._held_out, self._concurrency)
        self._cache.keep(key, rows, path)
        return self._note(what, digest, CachedScore(tuple(rows), path), was_cached=False, targets=targets)

    def _note(
        self,
        what: ScoreSubject,
        digest: str | None,
        found: CachedScore,
        was_cached: bool,
        targets: tuple[str, ...] = (),
    ) -> Sequence[RowScore]:
        basis = ScoreBasis(
            subject=what,
            score=total_score(found.rows),
            standard_error=standard_error(found.rows),
            unit=self._scorer.unit,
            higher_is_better=self._scorer.higher_is_better,
            rows=len(found.rows),
            weight=sum(row.weight for row in found.rows),
            revision_digest=digest,
            base=self._subject.base.name,
            base_digest=self._subject.base.digest,
            targets=targets,
            prompt_rendering=self._held_out.rendering,
            scorer=self._scorer.name,
            labels=self._labels,
            dataset_digest=self._dataset_digest,
            serving_path=found.path,
            row_scores=tuple((row.value, row.weight) for row in found.rows),
            was_cached=was_cached,
        )
        self.scores.append(basis)
        return found.rows

    @property
    def _labels(self) -> tuple[str, ...]:
        return tuple(self._subject.spec.labels) if self._scorer.name == "label" else ()

    def _key(self, digest: str | None, path: ServingPath) -> ScoreKey:
        return ScoreKey(
            base_digest=self._subject.base.digest,
            revision_digest=digest,
            dataset_digest=self._dataset_digest,
            rows=len(self._held_out.rows),
            scorer=self._scorer.name,
            labels=self._labels,
            prompt_rendering=self._held_out.rendering,
            build=path.build,
            dtype=path.dtype,
        )
