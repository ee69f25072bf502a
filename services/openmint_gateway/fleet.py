"""Engines and cold loads as this process knows them: the residency feed, and the wait for a load."""

from dataclasses import dataclass
from uuid import UUID

from openmint import tracing
from openmint.bus.connection import Bus
from openmint.engines.loads import LoadOrder, LoadWaiter
from openmint.engines.residency import Placement, ResidencyView
from openmint.engines.scheduler_view import SchedulerQuery, ask_leader
from openmint.errors import BusUnavailable, NoEngine
from openmint_gateway.dispatcher import Order
from openmint_gateway.problems import JsonObject


@dataclass(frozen=True, slots=True)
class EngineSeen:
    """An engine, as its heartbeats tell."""

    engine: str
    base: str
    pools: list[str]
    boot_id: UUID
    is_ready: bool
    residents: int


class Fleet:
    """What the hot path and the control API ask about engines; no engine is ever asked."""

    def __init__(self, view: ResidencyView, waiter: LoadWaiter, bus: Bus) -> None:
        self._view = view
        self._waiter = waiter
        self._bus = bus

    def engines_with(self, base: str, pool: str, digest: str) -> list[Placement]:
        """The engines on which a revision is resident."""
        return self._view.engines_with(base, pool, digest)

    def engines_of(self, base: str, pool: str) -> list[Placement]:
        """All engines that are ready, under the base's own model name."""
        return self._view.engines_of(base, pool)

    async def ensure_resident(self, order: Order, deadline_s: float) -> Placement:
        """Have a revision loaded. Raises: LoadTimeout, LoadFailed, Overloaded, NoEngine, BusUnavailable."""
        revision = order.revision
        if revision is None:
            raise NoEngine(f"no engine serves base model {order.base} now", retry_after_s=5.0)
        load = LoadOrder(
            base=order.base,
            tenant=order.tenant,
            policy=order.policy.rpartition("/")[2],
            revision_id=revision.revision_id,
            digest=revision.digest,
            rank=revision.rank,
            adapter_bytes=revision.adapter_bytes,
            pool=order.pool,
        )
        with tracing.begin("gateway.wait", waits_for="load"):
            return await self._waiter.ensure_resident(load, deadline_s)

    def engines(self) -> list[EngineSeen]:
        """All engines that are alive, by name."""
        return [
            EngineSeen(
                engine=known.engine,
                base=known.base,
                pools=list(known.pools),
                boot_id=known.boot_id,
                is_ready=known.is_ready,
                residents=sum(1 for adapter in known.adapters.values() if adapter.adapter_name),
            )
            for known in sorted(self._view.index.engines.values(), key=lambda known: known.engine)
        ]

    async def loads(self, base: str, tenant: str) -> list[JsonObject]:
        """The tenant's cold loads of a base, as its scheduler has them; none when no scheduler answers."""
        try:
            seen = await ask_leader(self._bus, base, SchedulerQuery(tenant=tenant, residents=False))
        except BusUnavailable:
            return []
        loads = seen.loads if seen is not None else []
        return [load.model_dump(mode="json") for load in loads if load.tenant == tenant]
