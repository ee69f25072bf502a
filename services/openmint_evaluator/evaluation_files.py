"""Seam to the store: revisions as verified folders, datasets, reports."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from openmint.catalog.rows import Base
from openmint_evaluator.report import Report


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """A revision's files on this machine, checked against digest and signature."""

    path: Path
    rank: int
    targets: tuple[str, ...]
    is_no_op: bool


class EvaluationFiles(Protocol):
    """Every call raises StoreUnavailable when a retry can help."""

    async def fetch_adapter(self, digest: str, base: Base, into: Path) -> AdapterFolder:
        """Raises: BadAdapter when the files are not those of the digest or may not be loaded on the base."""
        ...

    async def read_dataset(self, key: str) -> bytes:
        """The content of a dataset."""
        ...

    async def read_report(self, key: str) -> Report | None:
        """A report written before; None when there is none."""
        ...

    async def write_report(self, report: Report) -> str:
        """Store the report; its key."""
        ...
