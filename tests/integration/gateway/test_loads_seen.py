"""What waits, as a tenant sees it through the gateway and an operator on the bus; a real scheduler is asked."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from openmint.bus.connection import connect_bus
from openmint.clock import WallClock
from openmint.endings import end
from openmint.engines.scheduler_view import SchedulerQuery, ask_every_leader, ask_leader, hear_engines
from openmint.engines.simulated import SimulatedEngine
from openmint_scheduler.app import Scheduler
from openmint_scheduler.settings import SchedulerSettings

from .conftest import BASE, World


@pytest.fixture
async def scheduler(world: World) -> AsyncIterator[Scheduler]:
    """A scheduler to which no engine shows itself: whatever is asked of it waits."""
    world.answers_loads = False
    names = set(SchedulerSettings.model_fields) & set(world.settings.model_fields_set)
    settings = SchedulerSettings(**world.settings.model_dump(include=names), bases=BASE)
    bus = await connect_bus(settings, "scheduler")
    started = Scheduler(bus, settings, WallClock(), lambda url: SimulatedEngine("silent", WallClock()))
    await started.start()
    async with asyncio.timeout(10):
        while await ask_leader(bus, BASE) is None:
            await asyncio.sleep(0.05)
    yield started
    await started.close()
    await bus.close()


async def test_a_tenant_sees_its_own_waiting_loads_and_the_operator_sees_all(world: World, scheduler: Scheduler):
    mine, other = await world.served(), await world.served(tenant=f"{world.tenant}-other")
    async with await world.http() as http, await world.http(f"{world.tenant}-other") as other_http:
        asking = [
            asyncio.create_task(client.post("/v1/completions", json={"model": f"{tenant}/support", "prompt": "a"}))
            for client, tenant in ((http, world.tenant), (other_http, f"{world.tenant}-other"))
        ]
        for client, revision in ((http, mine), (other_http, other)):
            load = await _waiting_load(client)
            assert (load["revision"], load["phase"]) == (revision.digest, "waiting")
            assert load["waiters"] >= 1
            assert load["why"] == "no engine of pool serve takes loads (ready)"
            assert load["deadline_in_s"] > 0
        (engine,) = [e for e in (await http.get("/v1/engines")).json() if e["engine"] == "engine-1"]
        assert (engine["base"], engine["is_ready"]) == (BASE, True)

        (seen,) = [seen for seen in await ask_every_leader(world.bus) if seen.base == BASE]
        assert {load.revision for load in seen.loads} >= {mine.digest, other.digest}
        assert [(engine.engine, engine.condition, engine.is_usable) for engine in seen.engines] == [
            ("engine-1", "ready", False)
        ]
        alone = await ask_leader(world.bus, BASE, SchedulerQuery(tenant=world.tenant))
        assert alone is not None
        assert ([load.revision for load in alone.loads], alone.engines) == ([mine.digest], [])
        await end(*asking)


async def _waiting_load(client: httpx.AsyncClient) -> dict[str, Any]:
    """The one load that this client sees, once a request waits for it (the alias move alone began it already)."""
    async with asyncio.timeout(10):
        while True:
            loads: list[dict[str, Any]] = (await client.get("/v1/loads")).json()
            if [load["load_class"] for load in loads] == ["interactive"]:
                return loads[0]
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_without_a_scheduler_engines_are_still_heard_and_loads_are_none(world: World):
    assert await ask_leader(world.bus, "nobodys-base") is None
    assert [e.engine for e in await hear_engines(world.bus) if e.base == BASE] == ["engine-1"]
    async with await world.http() as http:
        assert (await http.get("/v1/loads")).json() == []
