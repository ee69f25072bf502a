"""Making room on an engine: what may go at all, and which of it goes first."""

from openmint_scheduler.demand import DemandMeter
from openmint_scheduler.eviction import Candidate, Eviction
from openmint_scheduler.interest import InterestBook
from openmint_scheduler.ledger import EngineEntry
from openmint_scheduler.limits import Limits
from openmint_scheduler.messages import LoadKey
from openmint_scheduler.warm import WarmBook


class RoomMaker:
    """Knows every reason why a resident must stay."""

    def __init__(
        self, interest: InterestBook, warm: WarmBook, demand: DemandMeter, limits: Limits, choose: Eviction
    ) -> None:
        self._interest = interest
        self._warm = warm
        self._demand = demand
        self._limits = limits
        self._choose = choose

    def candidates(self, entry: EngineEntry, now_s: float) -> list[Candidate]:
        """Residents that may go: idle, settled, not leased in any pool of the engine, not kept warm."""
        kept = self._warm.kept_on(entry, now_s)
        may_go: list[Candidate] = []
        for digest, resident in entry.residents.items():
            if (
                resident.in_flight
                or digest in kept
                or digest in entry.removing
                or digest in entry.assigned
                or now_s < resident.not_before_s
                or now_s - resident.attached_s < self._limits.settle_s
                or any(self._interest.is_held(LoadKey(pool, digest)) for pool in entry.pools)
            ):
                continue
            last_s = max(self._demand.last_s(digest), resident.attached_s)
            rate = self._demand.per_min(digest, now_s)
            may_go.append(Candidate(digest, resident.adapter_bytes, rate, last_s, digest in entry.staged))
        return may_go

    def has_room(self, entry: EngineEntry, now_s: float) -> bool:
        """True when one more load would find a place, now or after an eviction."""
        if entry.free > 0:
            return True
        return entry.free + len(entry.removing) + len(self.candidates(entry, now_s)) > 0

    def victims(self, entry: EngineEntry, wanted: int, now_s: float) -> list[str]:
        """Up to `wanted` residents to remove, cheapest first."""
        candidates = self.candidates(entry, now_s)
        chosen: list[str] = []
        while candidates and len(chosen) < wanted:
            victim = self._choose(candidates)
            candidates.remove(victim)
            chosen.append(victim.digest)
        return chosen
