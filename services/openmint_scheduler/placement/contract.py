"""What a placement strategy is."""

from typing import Protocol

from openmint_scheduler.ledger import EngineEntry


class Placement(Protocol):
    """Choose one of `engines`, which come in the order in which the revision likes them.

    All of them are ready, in the right pool, large enough for the adapter, and have or can make room for it; there
    is at least one. The choice must depend on the arguments alone.
    """

    def __call__(self, digest: str, engines: list[EngineEntry]) -> EngineEntry: ...
