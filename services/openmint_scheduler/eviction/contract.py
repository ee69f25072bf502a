"""What an eviction strategy is."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Candidate:
    """A resident that may go: nothing of it is in flight, nobody holds a lease on it, and it is not kept warm."""

    digest: str
    adapter_bytes: int
    demands_per_min: float
    last_wanted_s: float
    is_staged: bool
    copies: int = 1
    """Engines that hold it; 1 for one that needs all its copies."""


class Eviction(Protocol):
    """Choose one of `candidates` (at least one). The choice must depend on the arguments alone."""

    def __call__(self, candidates: list[Candidate]) -> Candidate: ...
