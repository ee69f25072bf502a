"""What a scenario is."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from load.report import ReportBuilder


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line gives. A quick run answers within five minutes."""

    is_quick: bool
    seed: int
    keep: Path | None = None
    """Where a scenario of many rows keeps those that are finished, so that an interrupted run goes on."""

    only: str | None = None
    """A pattern on the names of rows; other rows are not run, and their bounds don't hold unless they are kept."""

    def wants(self, row: str) -> bool:
        """Whether the row of this name is to be run."""
        return fnmatch(row, self.only or "*")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A named run that measures something and checks it against bounds fixed beforehand."""

    name: str
    summary: str
    run: Callable[[Options, ReportBuilder], None]
