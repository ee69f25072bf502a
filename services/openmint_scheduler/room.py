"""Making room on an engine: what may go at all, and which of it goes first."""

from collections.abc import Iterator
from heapq import nsmallest
from itertools import islice
from typing import TYPE_CHECKING

from openmint_scheduler.eviction import Candidate, Eviction
from openmint_scheduler.ledger import EngineEntry, ResidentEntry

if TYPE_CHECKING:
    from openmint_scheduler.state import SchedulerState

COUNT_HOLDS_S = 0.5
"""How long a count of what may go is believed: only time itself changes it without being noticed."""


class RoomMaker:
    """Knows every reason why a resident must stay."""

    def __init__(self, state: "SchedulerState", eviction: Eviction) -> None:
        self._state = state
        self._eviction = eviction

    def value(self, entry: EngineEntry, digest: str, resident: ResidentEntry, now_s: float) -> None:
        """Note what the loss of a resident would cost now."""
        state = self._state
        last_s = max(state.demand.last_s(digest), resident.attached_s)
        rate = state.demand.per_min(digest, now_s)
        copies = max(1, state.ledger.copies(digest) - state.copies_needed(digest) + 1)
        candidate = Candidate(digest, resident.adapter_bytes, rate, last_s, digest in entry.staged, copies)
        resident.loss = self._eviction(candidate)

    def may_go(self, entry: EngineEntry, now_s: float) -> Iterator[tuple[str, ResidentEntry]]:
        """Residents that are idle, settled, not leased in any pool of the engine, not kept warm."""
        state = self._state
        latest_s = now_s - state.limits.settle_s
        kept = state.warm.kept_on(entry, now_s)
        is_held_in, pools = state.interest.is_held_in, entry.pools
        for digest, resident in entry.residents.items():
            if (
                resident.in_flight == 0
                and resident.attached_s <= latest_s
                and resident.not_before_s <= now_s
                and digest not in kept
                and digest not in entry.removing
                and digest not in entry.assigned
                and not is_held_in(pools, digest)
            ):
                yield digest, resident

    def has_room(self, entry: EngineEntry, now_s: float) -> bool:
        """True when one more load would find a place, now or after an eviction."""
        free = entry.free
        if free > 0:
            return True
        needed = 1 - free - len(entry.removing)
        if needed <= 0:
            return True
        if entry.evictable_s is None or now_s - entry.evictable_s > COUNT_HOLDS_S or needed > entry.evictable:
            entry.evictable = sum(1 for _ in islice(self.may_go(entry, now_s), needed))
            entry.evictable_s = now_s
        return entry.evictable >= needed

    def has_idle_room(self, entry: EngineEntry, now_s: float) -> bool:
        """True when a prefetch would find a place without pushing out what somebody has wanted lately."""
        if entry.free > 0:
            return True
        bound = self._state.limits.unwanted_per_min
        per_min = self._state.demand.per_min
        unwanted = sum(per_min(digest, now_s) < bound for digest, _ in self.may_go(entry, now_s))
        return entry.free + len(entry.removing) + unwanted > 0

    def victims(self, entry: EngineEntry, wanted: int, now_s: float) -> list[str]:
        """Up to `wanted` residents to remove, cheapest first; between equals the one attached first."""
        found = nsmallest(wanted + 1, self.may_go(entry, now_s), key=lambda pair: (pair[1].loss, pair[1].attached_s))
        entry.cheapest = found[wanted][1].loss if len(found) > wanted else float("inf")
        return [digest for digest, _ in found[:wanted]]
