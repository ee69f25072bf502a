"""Least busy: even load, and no memory of where a revision was."""

from openmint_scheduler.ledger import EngineEntry
from openmint_scheduler.pool import affinity


def least_busy(digest: str, engines: list[EngineEntry]) -> EngineEntry:
    """The engine with the fewest loads on their way and requests running or waiting."""

    def cost(entry: EngineEntry) -> tuple[int, int]:
        return len(entry.assigned) + entry.running + entry.waiting, -affinity(digest, entry.engine)

    return min(engines, key=cost)
