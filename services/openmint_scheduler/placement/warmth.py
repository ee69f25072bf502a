"""Warmest: where the load costs least and disturbs least."""

from openmint_scheduler.ledger import EngineEntry

EVICTION, FETCH, MUCH = 10_000, 100_000, 1_000_000
"""Each beyond anything that the smaller ones add up to."""


def warmest(digest: str, engines: list[EngineEntry]) -> EngineEntry:
    """A staged copy first (no fetch), then free room (no eviction), then the least busy, then what it likes."""

    best, least = engines[0], MUCH
    for entry in engines:  # Runs for every load: no tuples, no calls.
        cost = entry.burden
        if entry.capacity <= len(entry.residents) + entry.coming:
            cost += EVICTION
        if digest not in entry.staged:
            cost += FETCH
        if cost < least:
            best, least = entry, cost
    return best
