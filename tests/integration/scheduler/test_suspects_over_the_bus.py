"""A bad adapter on simulated engines, with the scheduler, the bus and the waiting as they really are."""

import asyncio

import pytest

from openmint.engines.simulated import SimulatedTimings
from openmint.errors import Quarantined
from openmint.events import AdapterCondemned

QUICK = SimulatedTimings(gap_s=0.01, restart_s=0.5)


def digest(number):
    return f"sha256:{number:064x}"


@pytest.fixture
async def condemned(fleet):
    """What is told of condemned adapters."""
    heard = []

    async def hear(message):
        heard.append(AdapterCondemned.model_validate_json(message.data))

    subscription = await fleet.bus.nc.subscribe(AdapterCondemned.subject_filter(), cb=hear)
    yield heard
    await subscription.unsubscribe()


async def test_a_bad_adapter_is_condemned_and_its_neighbour_answers_elsewhere(fleet, eventually, condemned):
    await fleet.scheduler()
    engines = [await fleet.engine(name, timings=QUICK) for name in ("a", "b")]
    for engine in engines:
        engine.faults.poisonous = {digest(1)}
    bad = await fleet.loads.ensure_resident(fleet.order(1), 10.0)
    spoiled = next(engine for engine in engines if engine.url == bad.url)
    other = next(engine for engine in engines if engine is not spoiled)
    async with spoiled.request(digest(1)) as is_answered:
        assert not is_answered
    await eventually(lambda: all(p.engine != spoiled.name for p in fleet.view.engines_of(fleet.base, "serve")))

    neighbour = await fleet.loads.ensure_resident(fleet.order(2), 5.0)
    assert neighbour.engine == other.name
    with pytest.raises(Quarantined, match="no finite answer"):
        await fleet.loads.ensure_resident(fleet.order(1), 20.0)
    await eventually(lambda: len(condemned) == 1)
    assert (condemned[0].digest, condemned[0].base, condemned[0].engine) == (digest(1), fleet.base, spoiled.name)
    assert other.restarts == 0
    assert other.attaches[digest(1)] == 0
    await eventually(lambda: len(fleet.view.engines_of(fleet.base, "serve")) == 2)


async def test_a_leader_that_comes_later_finds_the_suspect_in_the_heartbeats(fleet, eventually, condemned):
    first = await fleet.scheduler("first")
    engines = [await fleet.engine(name, timings=QUICK) for name in ("a", "b")]
    for engine in engines:
        engine.faults.poisonous = {digest(1)}
    bad = await fleet.loads.ensure_resident(fleet.order(1), 10.0)
    await first.close()
    spoiled = next(engine for engine in engines if engine.url == bad.url)
    async with spoiled.request(digest(1)) as is_answered:
        assert not is_answered
    await asyncio.sleep(0.5)
    await fleet.scheduler("second")
    await eventually(lambda: len(condemned) == 1, within_s=20.0)
    assert sum(engine.restarts for engine in engines) == 1
