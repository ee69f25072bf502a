"""Scores measured before, found again: in this process, and through the catalogue in the reports of production.

A score is used again only for the same model, rows, scorer, rendering, engine build and dtype.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from openmint_evaluator.comparison import RowScore
from openmint_evaluator.report import Report, ServingPath

MAX_ENTRIES = 64
"""Of some thousand rows each: a few megabytes."""


@dataclass(frozen=True, slots=True)
class ScoreKey:
    """What must be equal for two scores to be the same measurement. `revision_digest` is None for the base."""

    base_digest: str
    revision_digest: str | None
    dataset_digest: str
    rows: int
    scorer: str
    labels: tuple[str, ...]
    prompt_rendering: str
    build: str
    dtype: str


@dataclass(frozen=True, slots=True)
class CachedScore:
    """Row scores, and where they were measured."""

    rows: tuple[RowScore, ...]
    path: ServingPath


class ScoreCache:
    """The last MAX_ENTRIES scores; the least recently used goes first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[ScoreKey, CachedScore] = OrderedDict()

    def find(self, key: ScoreKey) -> CachedScore | None:
        """A score measured under exactly this key."""
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
        return found

    def keep(self, key: ScoreKey, rows: Sequence[RowScore], path: ServingPath) -> None:
        """Remember a score."""
        self._entries[key] = CachedScore(tuple(rows), path)
        self._entries.move_to_end(key)
        while len(self._entries) > MAX_ENTRIES:
            self._entries.popitem(last=False)

    def keep_reports(self, reports: Iterable[Report]) -> None:
        """Take over what earlier evaluations measured."""
        for report in reports:
            for score in report.scores:
                rows = tuple(RowScore(value, weight) for value, weight in score.row_scores)
                if not rows:
                    continue
                path = score.serving_path
                key = ScoreKey(
                    base_digest=score.base_digest,
                    revision_digest=score.revision_digest,
                    dataset_digest=score.dataset_digest,
                    rows=len(rows),
                    scorer=score.scorer,
                    labels=score.labels,
                    prompt_rendering=score.prompt_rendering,
                    build=path.build,
                    dtype=path.dtype,
                )
                if key not in self._entries:
                    self.keep(key, rows, path)
