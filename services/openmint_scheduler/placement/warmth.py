"""Warmest: where the load costs least and disturbs least."""

from openmint_scheduler.ledger import EngineEntry

BURDEN, EVICTION, FETCH, MUCH = 1e3, 1e6, 1e7, 1e9
"""Each beyond anything that the smaller ones add up to."""

BURDENS_TOGETHER = 4
"""Engines that are so little apart in burden count as equal, and the smaller loss decides."""


def warmest(digest: str, engines: list[EngineEntry]) -> EngineEntry:
    """A staged copy first (no fetch), then free room, then the least busy; of full ones, the one whose eviction costs
    least; then what the revision likes."""
    best, least = engines[0], MUCH
    for entry in engines:  # Runs for every load: no tuples, no calls.
        if entry.free <= 0:
            cost = EVICTION + BURDEN * (entry.burden // BURDENS_TOGETHER) + min(entry.cheapest, BURDEN - 1)
        else:
            cost = BURDEN * entry.burden
        if digest not in entry.staged:
            cost += FETCH
        if cost < least:
            best, least = entry, cost
    return best
