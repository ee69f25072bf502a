"""What a scenario is."""

from collections.abc import Callable
from dataclasses import dataclass

from load.report import ReportBuilder


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line gives. A quick run answers within five minutes."""

    is_quick: bool
    seed: int


@dataclass(frozen=True, slots=True)
class Scenario:
    """A named run that measures something and checks it against bounds fixed beforehand."""

    name: str
    summary: str
    run: Callable[[Options, ReportBuilder], None]
