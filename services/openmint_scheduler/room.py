"""Making room on an engine: what may go at all, and which of it goes first."""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from openmint_scheduler.eviction import Candidate, Eviction
from openmint_scheduler.ledger import EngineEntry, ResidentEntry
from openmint_scheduler.messages import LoadKey

if TYPE_CHECKING:
    from openmint_scheduler.state import SchedulerState

COUNT_HOLDS_S = 0.5
"""How long a count of what may go is believed: only time itself changes it without being noticed."""

PREFETCH_BELOW_PER_MIN = 0.5
"""A prefetch pushes out only what is wanted less often than this."""


class RoomMaker:
    """Knows every reason why a resident must stay."""

    def __init__(self, state: "SchedulerState", choose: Eviction) -> None:
        self._state = state
        self._choose = choose

    def candidates(self, entry: EngineEntry, now_s: float) -> list[Candidate]:
        """Residents that may go: idle, settled, not leased in any pool of the engine, not kept warm."""
        state, demand = self._state, self._state.demand
        may_go: list[Candidate] = []
        for digest, resident in self._may_go(entry, now_s):
            last_s = max(demand.last_s(digest), resident.attached_s)
            rate = demand.per_min(digest, now_s)
            copies = 1 if digest in state.hot else state.ledger.copies(digest)
            may_go.append(Candidate(digest, resident.adapter_bytes, rate, last_s, digest in entry.staged, copies))
        return may_go

    def _may_go(self, entry: EngineEntry, now_s: float) -> Iterator[tuple[str, ResidentEntry]]:
        state = self._state
        latest_s = now_s - state.limits.settle_s
        kept = state.warm.kept_on(entry, now_s)
        for digest, resident in entry.residents.items():
            if (
                resident.in_flight == 0
                and resident.attached_s <= latest_s
                and resident.not_before_s <= now_s
                and digest not in kept
                and digest not in entry.removing
                and digest not in entry.assigned
                and not any(state.interest.is_held(LoadKey(pool, digest)) for pool in entry.pools)
            ):
                yield digest, resident

    def has_room(self, entry: EngineEntry, now_s: float) -> bool:
        """True when one more load would find a place, now or after an eviction."""
        if entry.free > 0:
            return True
        needed = 1 - entry.free - len(entry.removing)
        if entry.evictable_s is None or now_s - entry.evictable_s > COUNT_HOLDS_S or needed > entry.evictable:
            entry.evictable = sum(1 for _ in islice(self._may_go(entry, now_s), max(0, needed)))
            entry.evictable_s = now_s
        return entry.evictable >= needed

    def has_idle_room(self, entry: EngineEntry, now_s: float) -> bool:
        """True when a prefetch would find a place without pushing out what is wanted."""
        if entry.free > 0:
            return True
        unwanted = sum(c.demands_per_min < PREFETCH_BELOW_PER_MIN for c in self.candidates(entry, now_s))
        return entry.free + len(entry.removing) + unwanted > 0

    def victims(self, entry: EngineEntry, wanted: int, now_s: float) -> list[str]:
        """Up to `wanted` residents to remove, cheapest first."""
        candidates = self.candidates(entry, now_s)
        chosen: list[str] = []
        while candidates and len(chosen) < wanted:
            victim = self._choose(candidates)
            candidates.remove(victim)
            chosen.append(victim.digest)
        return chosen
