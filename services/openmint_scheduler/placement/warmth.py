"""Warmest: where the load costs least and disturbs least."""

from openmint_scheduler.ledger import EngineEntry
from openmint_scheduler.pool import affinity

BUSY_STEPS = 4
"""Running requests count in quarters of what the engine may run, so that small swings don't scatter revisions."""


def warmest(digest: str, engines: list[EngineEntry]) -> EngineEntry:
    """A staged copy first (no fetch), then free room (no eviction), then the least busy, then affinity."""

    def cost(entry: EngineEntry) -> tuple[bool, bool, int, int]:
        requests = entry.running + entry.waiting
        busy = len(entry.assigned) + BUSY_STEPS * requests // entry.max_running
        return digest not in entry.staged, entry.free <= 0, busy, -affinity(digest, entry.engine)

    return min(engines, key=cost)
