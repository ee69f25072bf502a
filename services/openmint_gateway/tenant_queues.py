"""Who waits for engines: a queue per adapter and tenant, and how much work every tenant has been given.

No I/O, no clock. Turns are start-time fair queueing: a tenant's `turn` grows by the work it gets over its weight, the
lowest is next, and a tenant that wanted nothing for a while starts beside the one that is served now.
"""

from bisect import insort
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from openmint_gateway.seats import EngineSeat, Request

TENANTS_KEPT = 10_000

FIRST_GUESS_TOKENS = 256.0
"""What a sequence generates, before any was seen."""

LEARNING = 0.05
SIBLING_BONUS = 0.05
"""Each waiting request of the same adapter brings an adapter forward by this part of its wait …"""

MAX_SIBLINGS = 5
"""… up to so many."""


@dataclass(slots=True)
class AdapterQueues:
    """Requests that wait for one adapter, by tenant, and the engines where it is."""

    engines: tuple[str, ...] = ()
    queues: dict[str, list[Request]] = field(default_factory=dict[str, list[Request]])
    waiting: int = 0


@dataclass(slots=True)
class Tenant:
    """`waiting` and `waiting_cost` count its requests that wait for a load as well."""

    turn: float
    weight: float
    waiting: int = 0
    waiting_cost: float = 0.0
    usual_tokens: float | None = None
    """What a sequence of its generates as a rule."""
    adapters: dict[str, None] = field(default_factory=dict[str, None])
    """The adapters that it has queued requests for."""


class TenantQueues:
    """The queues, and whose turn it is."""

    def __init__(
        self, engines: Mapping[str, EngineSeat], weights: Mapping[str, float], *, by_deadline: bool = True
    ) -> None:
        self.tenants: dict[str, Tenant] = {}
        self.adapters: dict[str, AdapterQueues] = {}
        self.queued = 0
        self._engines = engines
        self._weights = weights
        self._by_deadline = by_deadline
        self._turn = 0.0
        self._usual_tokens = FIRST_GUESS_TOKENS

    def tenant(self, name: str) -> Tenant:
        """The tenant, known from now on."""
        tenant = self.tenants.get(name)
        if tenant is None:
            if len(self.tenants) >= TENANTS_KEPT:
                self.tenants = {n: t for n, t in self.tenants.items() if t.waiting or t.turn > self._turn}
            tenant = self.tenants[name] = Tenant(self._turn, self._weights.get(name, 1.0))
        return tenant

    def weight(self, name: str) -> float:
        """Its share beside others."""
        return self._weights.get(name, 1.0)

    def estimate(self, request: Request) -> None:
        """Set what it is expected to cost: what it asks for, but not far beyond what its tenant's requests use."""
        tenant = self.tenants.get(request.tenant)
        usual = tenant.usual_tokens if tenant else None
        asked = request.asked_tokens
        if asked is None:
            tokens = self._usual_tokens if usual is None else usual
        else:
            tokens = asked if usual is None else min(asked, 2 * usual)
        request.cost = request.prompt_cost + request.sequences * max(1.0, tokens)

    def settle(self, request: Request, tokens: int) -> float:
        """It has generated so many tokens in all: its tenant is charged for them, and not for the estimate.

        Returns the work that it was.
        """
        tenant = self.tenant(request.tenant)
        each = tokens / request.sequences
        usual = tenant.usual_tokens
        tenant.usual_tokens = each if usual is None else usual + LEARNING * (each - usual)
        self._usual_tokens += LEARNING * (each - self._usual_tokens)
        cost = request.prompt_cost + tokens
        tenant.turn += (cost - request.cost) / tenant.weight
        return cost

    def by_turns(self) -> list[tuple[float, str]]:
        """Tenants with queued requests, the one whose turn it is first."""
        return sorted((tenant.turn, name) for name, tenant in self.tenants.items() if tenant.adapters)

    def charge(self, request: Request) -> None:
        """Its tenant was given this work."""
        tenant = self.tenant(request.tenant)
        start = tenant.turn if tenant.adapters else max(tenant.turn, self._turn)
        request.charged = request.cost / tenant.weight
        tenant.turn = start + request.charged
        served = min((other.turn for other in self.tenants.values() if other.adapters), default=start)
        self._turn = max(self._turn, served)

    def refund(self, request: Request) -> None:
        """The work was not done after all."""
        self.tenant(request.tenant).turn -= request.charged
        request.charged = 0.0

    def count(self, request: Request) -> None:
        """It waits, for a load or in a queue."""
        tenant = self.tenant(request.tenant)
        tenant.waiting += 1
        tenant.waiting_cost += request.cost

    def discount(self, request: Request) -> None:
        """It waits no more."""
        tenant = self.tenants[request.tenant]
        tenant.waiting -= 1
        tenant.waiting_cost = tenant.waiting_cost - request.cost if tenant.waiting else 0.0

    def put(self, request: Request, engines: Collection[str], now_s: float) -> None:
        """Queue it for the engines on which its adapter is."""
        tenant = self.tenant(request.tenant)
        if not tenant.adapters:
            tenant.turn = max(tenant.turn, self._turn)
        tenant.adapters[request.adapter] = None
        self.place(request.adapter, engines, now_s)
        known = self.adapters.setdefault(request.adapter, AdapterQueues(tuple(engines)))
        insort(known.queues.setdefault(request.tenant, []), request, key=self._place_in_queue)
        known.waiting += 1
        self.queued += 1
        self.count(request)
        self._spread(request, known.engines, now_s)

    def take(self, request: Request, now_s: float) -> None:
        """Take it out of its queue."""
        known, tenant = self.adapters[request.adapter], self.tenants[request.tenant]
        queue = known.queues[request.tenant]
        queue.remove(request)
        known.waiting -= 1
        self.queued -= 1
        if not queue:
            del known.queues[request.tenant], tenant.adapters[request.adapter]
        if not known.queues:
            del self.adapters[request.adapter]
        self.discount(request)
        self._spread(request, (), now_s)

    def place(self, adapter: str, engines: Collection[str], now_s: float) -> None:
        """An adapter that is waited for answers on these engines now, and on no other."""
        known = self.adapters.get(adapter)
        if known is None or known.engines == tuple(engines):
            return
        known.engines = tuple(engines)
        for queue in known.queues.values():
            for request in queue:
                self._spread(request, known.engines, now_s)

    def waiting_for(self, adapter: str) -> list[Request]:
        """The requests that wait for an adapter."""
        known = self.adapters.get(adapter)
        return [] if known is None else [request for queue in known.queues.values() for request in queue]

    def heads(self, tenant: str, engine: str) -> list[Request]:
        """The first request of each of the tenant's adapters that may go to the engine."""
        heads: list[Request] = []
        for adapter in self.tenants[tenant].adapters:
            known = self.adapters[adapter]
            if engine in known.engines:
                queue = known.queues[tenant]
                if not queue[0].avoided:
                    heads.append(queue[0])
                else:
                    heads += [request for request in queue if engine not in request.avoided][:1]
        return heads

    def order(self, head: Request) -> tuple[float, int]:
        """The lowest goes first: the earliest deadline, brought forward by those who wait for the same adapter."""
        if not self._by_deadline:
            return 0.0, head.number
        siblings = min(self.adapters[head.adapter].waiting - 1, MAX_SIBLINGS)
        return head.deadline_s - SIBLING_BONUS * siblings * head.may_wait_s, head.number

    def _place_in_queue(self, request: Request) -> tuple[float, int]:
        return (request.deadline_s if self._by_deadline else 0.0), request.number

    def _spread(self, request: Request, engines: Collection[str], now_s: float) -> None:
        """Count its work at these engines, and nowhere else."""
        for name in request.spread:
            seat = self._engines.get(name)
            if seat is not None:
                seat.wait_less(request.cost / len(request.spread), now_s)
        request.spread = tuple(name for name in engines if name in self._engines)
        for name in request.spread:
            self._engines[name].wait_more(request.cost / len(request.spread), now_s)
