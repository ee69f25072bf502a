"""What an engine host tells the bus, on a real engine and a real NATS."""

import asyncio
import time
from collections.abc import Callable

import pytest
from nats.aio.msg import Msg
from tests.fixtures_engine import RunningEngine

from openmint.bus.connection import Bus
from openmint.engines.residency_index import KnownEngine
from openmint.events import AdapterGone, AdapterResident, EngineHeartbeat

pytestmark = pytest.mark.engine


async def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_a_heartbeat_every_second_carries_what_a_list_would_say(fp32_engine: RunningEngine, bus: Bus):
    beats: list[tuple[float, EngineHeartbeat]] = []

    async def on_beat(message: Msg) -> None:
        beats.append((time.monotonic(), EngineHeartbeat.model_validate_json(message.data)))

    subscription = await bus.nc.subscribe(f"openmint.engine.heartbeat.v1._.{fp32_engine.name}", cb=on_beat)
    await fp32_engine.attach(await fp32_engine.publish())
    await until(lambda: bool(beats) and beats[-1][1].residents == 1)
    await until(lambda: len(beats) >= 4)
    await subscription.unsubscribe()
    state = await fp32_engine.engine.state()
    beat = beats[-1][1]
    assert (beat.boot_id, beat.url, beat.list_version) == (state.boot_id, state.url, state.list_version)
    assert (beat.control_url, beat.capacity, beat.max_rank) == (fp32_engine.control_url, state.capacity, state.max_rank)
    assert beat.last_command == state.last_command
    assert (beats[-1][0] - beats[0][0]) / (len(beats) - 1) < 3


async def test_residency_facts_rise_in_sequence_and_name_where_to_go(fp32_engine: RunningEngine, bus: Bus):
    facts: list[AdapterResident | AdapterGone] = []

    async def on_fact(message: Msg) -> None:
        kind = AdapterResident if ".resident." in message.subject else AdapterGone
        facts.append(kind.model_validate_json(message.data))

    subscription = await bus.nc.subscribe(f"openmint.adapter.*.v1._.{fp32_engine.name}", cb=on_fact)
    digest = await fp32_engine.publish()
    (name,) = await fp32_engine.attach(digest)
    assert await fp32_engine.attach(digest) == [name]
    await fp32_engine.engine.remove(fp32_engine.stamp(), name, 10)
    await until(lambda: len(facts) >= 2)
    await subscription.unsubscribe()
    resident, gone = facts
    state = await fp32_engine.engine.state()
    assert isinstance(resident, AdapterResident)
    assert isinstance(gone, AdapterGone)
    assert (resident.digest, resident.adapter_name, resident.url) == (digest, name, state.url)
    assert (resident.pools, resident.boot_id) == (["serve", "gate-fp32"], state.boot_id)
    assert resident.attach_ms > 0
    assert resident.stage_ms > 0
    assert (gone.digest, gone.adapter_name, gone.reason) == (digest, name, "evicted")
    assert gone.sequence > resident.sequence


def test_the_list_hash_of_an_engine_is_the_one_that_views_compute():
    from uuid import uuid4

    from openmint.engines.residency_index import KnownAdapter
    from openmint_engine_host.plugin.admission import Admission, ResidentAdapter

    admission = Admission("base", 4, 1, 1.0)
    known = KnownEngine("e", "base", uuid4(), ("serve",), "http://e", 0.0)
    for name in ("b/b@1#2", "a/a@1#1"):
        admission.add(ResidentAdapter(name, f"sha256:{name}", 1, "", 1))
        known.adapters[name] = KnownAdapter(name, 1, 0.0)
    assert known.known_hash() == admission.list_hash()
