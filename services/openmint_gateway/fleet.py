"""Engines and cold loads as this process knows them: the residency feed, and the wait for a load."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
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

LOADS_FRESH_S = 0.25
"""A list of loads is not asked for more often, however often a tenant asks: the leader has other work."""

LISTS_KEPT = 1000


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
        self._loads_seen: dict[tuple[str, str], tuple[float, asyncio.Task[list[JsonObject]]]] = {}

    def engines_with(self, base: str, pool: str, digest: str) -> list[Placement]:
        """The engines on which a revision is resident."""
        return self._view.engines_with(base, pool, digest)

    def engines_of(self, base: str, pool: str) -> list[Placement]:
        """All engines that are ready, under the base's own model name."""
        return self._view.engines_of(base, pool)

    @contextlib.asynccontextmanager
    async def loaded(self, order: Order, deadline_s: float) -> AsyncGenerator[Placement]:
        """Have a revision loaded, and kept until the block ends.

        Raises: LoadTimeout, LoadFailed, Overloaded, NoEngine, BusUnavailable.
        """
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
        async with contextlib.AsyncExitStack() as kept:
            with tracing.begin("gateway.wait", waits_for="load"):
                placement = await kept.enter_async_context(self._waiter.lease(load, deadline_s))
            yield placement

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
        now_s = asyncio.get_running_loop().time()
        asked_s, asking = self._loads_seen.get((base, tenant), (0.0, None))
        if asking is None or now_s - asked_s > LOADS_FRESH_S:
            if len(self._loads_seen) >= LISTS_KEPT:
                self._loads_seen.clear()
            asking = asyncio.create_task(self._ask_loads(base, tenant))
            self._loads_seen[base, tenant] = (now_s, asking)
        return await asyncio.shield(asking)

    async def _ask_loads(self, base: str, tenant: str) -> list[JsonObject]:
        try:
            seen = await ask_leader(self._bus, base, SchedulerQuery(tenant=tenant, residents=False))
        except BusUnavailable:
            return []
        loads = seen.loads if seen is not None else []
        return [load.model_dump(mode="json") for load in loads if load.tenant == tenant]
