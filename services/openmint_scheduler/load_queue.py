"""The loads of one pool that wait for an engine, in the order in which they get one.

In what order is an `Ordering`'s to say; tenants' turns are start-time fair queueing. Bounded.
"""

import heapq
from dataclasses import dataclass
from itertools import count
from typing import Literal

from openmint.events.serving import LoadClass
from openmint_scheduler.limits import Limits
from openmint_scheduler.messages import CLASS_RANKS, Wanted
from openmint_scheduler.ordering import Ordering

Phase = Literal["waiting", "staging", "staged", "attaching"]


@dataclass(slots=True, eq=False)
class Load:
    """One load on its way. `engine` is set from `staging` on; `tries` counts what engines did wrong with it,
    `returns` how often it came back for whatever reason; a suspect was in a batch that an engine
    did not survive, and is attached alone from then on. A replica is one more copy of what answers already."""

    wanted: Wanted
    load_class: LoadClass
    deadline_s: float
    asked_s: float
    phase: Phase = "waiting"
    engine: str = ""
    command: int = 0
    since_s: float = 0.0
    not_before_s: float = 0.0
    tries: int = 0
    returns: int = 0
    is_suspect: bool = False
    is_replica: bool = False
    avoid: frozenset[str] = frozenset()
    trouble: str = ""

    def rank_at(self, now_s: float, ageing_s: float) -> int:
        """The class's rank, one better for each `ageing_s` of waiting."""
        return max(0, CLASS_RANKS[self.load_class] - int((now_s - self.asked_s) / ageing_s))


EVERYBODY = ""
"""Stands for the tenant where tenants take no turns."""


class LoadQueue:
    """Lanes by class, in each lane a heap per tenant."""

    def __init__(self, limits: Limits, ordering: Ordering) -> None:
        self._limits = limits
        self._ordering = ordering
        self._entered: dict[str, tuple[int, Load]] = {}
        self._lanes: list[dict[str, list[tuple[float, int, Load]]]] = [{} for _ in CLASS_RANKS]
        self._ranks: dict[str, int] = {}
        self._of_tenant: dict[str, int] = {}
        self._turn_s: dict[str, float] = {}
        self._round_s = 0.0
        self._tickets = count()

    def __len__(self) -> int:
        return len(self._entered)

    def waiting_of(self, tenant: str) -> int:
        """How many loads of this tenant wait."""
        return self._of_tenant.get(tenant, 0)

    def is_full_for(self, tenant: str, most: int) -> bool:
        """True when a queue of at most so many, or this tenant's share of it, is used up."""
        share = max(1, int(most * self._limits.tenant_share))
        return len(self) >= most or self.waiting_of(tenant) >= share

    def push(self, load: Load, now_s: float) -> None:
        """Let the load wait; for one that already waits: put it where its class and deadline belong now."""
        digest, tenant = load.wanted.key.digest, load.wanted.tenant
        if digest not in self._entered:
            self._of_tenant[tenant] = self.waiting_of(tenant) + 1
        ticket = next(self._tickets)
        self._entered[digest] = (ticket, load)
        ordering = self._ordering
        rank = self._ranks[digest] = load.rank_at(now_s, self._limits.ageing_s) if ordering.has_classes else 0
        heap = self._lanes[rank].setdefault(tenant if ordering.has_turns else EVERYBODY, [])
        heapq.heappush(heap, (ordering.key(load.deadline_s, load.asked_s), ticket, load))

    def pop(self) -> Load | None:
        """Take the load whose turn it is, and charge its tenant."""
        for lane in self._lanes:
            whose = self._next_tenant(lane) if lane else None
            if whose is not None:
                load = heapq.heappop(lane[whose])[2]
                self._leave(load)
                self.charge(load.wanted.tenant)
                return load
        return None

    def charge(self, tenant: str) -> None:
        """Count a load against its tenant: others come first for as long as it has had more."""
        start_s = max(self._round_s, self._turn_s.get(tenant, 0.0))
        self._round_s = start_s
        self._turn_s[tenant] = start_s + 1.0 / self._limits.tenant_weights.get(tenant, 1.0)

    def first(self) -> Load | None:
        """Whose turn it is; it stays."""
        for lane in self._lanes:
            whose = self._next_tenant(lane) if lane else None
            if whose is not None:
                return lane[whose][0][2]
        return None

    def give_back(self, load: Load, now_s: float) -> None:
        """Return a popped load that could not be placed, with its tenant's turn."""
        self._turn_s[load.wanted.tenant] -= 1.0 / self._limits.tenant_weights.get(load.wanted.tenant, 1.0)
        self.push(load, now_s)

    def remove(self, load: Load) -> None:
        """Take a load out, wherever it stands."""
        if load.wanted.key.digest in self._entered:
            self._leave(load)

    def worst(self) -> Load | None:
        """The prefetch that waits with the latest deadline, which may give way to a request; None without one."""
        prefetches = [load for _, load in self._entered.values() if load.load_class == "prefetch"]
        return max(prefetches, key=lambda load: (load.deadline_s, load.wanted.key.digest), default=None)

    def age(self, now_s: float) -> None:
        """Raise what has waited long, and forget the turns of tenants that fell behind the round."""
        for _, load in list(self._entered.values()):
            is_raised = load.rank_at(now_s, self._limits.ageing_s) != self._ranks[load.wanted.key.digest]
            if is_raised and self._ordering.has_classes:
                self.push(load, now_s)
        self._turn_s = {t: turn_s for t, turn_s in self._turn_s.items() if turn_s > self._round_s}

    def in_order(self) -> list[Load]:
        """All that wait, roughly as they will be served (turns between tenants are not played out)."""
        loads = [load for _, load in self._entered.values()]
        return sorted(loads, key=lambda load: (self._ranks[load.wanted.key.digest], load.deadline_s))

    def _next_tenant(self, lane: dict[str, list[tuple[float, int, Load]]]) -> str | None:
        best: tuple[float, float, str] | None = None
        for tenant in list(lane):
            heap = lane[tenant]
            while heap and self._entered.get(heap[0][2].wanted.key.digest, (None, None))[0] != heap[0][1]:
                heapq.heappop(heap)  # It left, or stands elsewhere since.
            if not heap:
                del lane[tenant]
                continue
            turn = (max(self._round_s, self._turn_s.get(tenant, 0.0)), heap[0][0], tenant)
            best = turn if best is None or turn < best else best
        return best[2] if best else None

    def _leave(self, load: Load) -> None:
        digest, tenant = load.wanted.key.digest, load.wanted.tenant
        del self._entered[digest], self._ranks[digest]
        left = self._of_tenant[tenant] - 1
        if left:
            self._of_tenant[tenant] = left
        else:
            del self._of_tenant[tenant]
