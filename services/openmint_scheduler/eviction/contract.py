"""What an eviction strategy is."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Candidate:
    """A resident as an eviction strategy sees it."""

    digest: str
    adapter_bytes: int
    demands_per_min: float
    last_wanted_s: float
    is_staged: bool
    copies: int = 1
    """Engines that hold it, less those that its heat needs beyond one; 1: this copy is needed."""


class Eviction(Protocol):
    """What the loss of a resident would cost, in any unit: of those that may go at all, the smallest goes first.

    It must depend on the argument alone. It is asked when an engine is looked at, so that choosing is cheap.
    """

    def __call__(self, candidate: Candidate) -> float: ...
