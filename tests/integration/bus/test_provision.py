"""One command makes streams and consumers; running it again must be harmless, whatever happened to them in between."""

import pytest
from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig

from openmint.bus.connection import Bus
from openmint.bus.provision import ensure_load_consumer, provision
from openmint.bus.streams import CONSUMERS, DEAD, JOBS, STREAMS
from openmint.errors import Conflict


async def test_second_run_changes_nothing(bus: Bus) -> None:
    report = await provision(bus)
    assert report.changed == ()
    assert len(report.unchanged) == len(STREAMS) + len(CONSUMERS)


async def test_drift_of_a_stream_is_repaired(bus: Bus) -> None:
    config = (await bus.js.stream_info(JOBS.name)).config
    config.max_bytes = 12345678
    config.duplicate_window = 1.0
    await bus.js.update_stream(config)
    report = await provision(bus)
    assert report.repaired == ("JOBS: max_bytes, duplicate_window",)
    assert (await bus.js.stream_info(JOBS.name)).config.max_bytes == JOBS.max_bytes
    assert (await provision(bus)).changed == ()


async def test_drift_of_a_consumer_is_repaired(bus: Bus) -> None:
    plan = CONSUMERS[0]
    config = (await bus.js.consumer_info(plan.stream, plan.name)).config
    config.ack_wait = 1.0
    await bus.js.add_consumer(plan.stream, config)
    report = await provision(bus)
    assert report.repaired == (f"{plan.stream}/{plan.name}: ack_wait",)


async def test_lost_consumer_is_made_again(bus: Bus) -> None:
    plan = CONSUMERS[0]
    await bus.js.delete_consumer(plan.stream, plan.name)
    assert (await provision(bus)).created == (f"{plan.stream}/{plan.name}",)


async def test_stream_of_another_kind_is_refused_and_left_alone(bus: Bus) -> None:
    await bus.js.delete_stream(DEAD.name)
    await bus.js.add_stream(
        StreamConfig(name=DEAD.name, subjects=list(DEAD.subjects), retention=RetentionPolicy.INTEREST)
    )
    try:
        with pytest.raises(Conflict, match="stream DEAD has retention"):
            await provision(bus)
    finally:
        await bus.js.delete_stream(DEAD.name)
        await provision(bus)


async def test_each_base_has_its_own_load_consumer(bus: Bus) -> None:
    plan = await ensure_load_consumer(bus, "smollm2-135m")
    again = await ensure_load_consumer(bus, "smollm2-135m")
    other = await ensure_load_consumer(bus, "qwen")
    assert plan.name == again.name != other.name
    info = await bus.js.consumer_info("LOADS", plan.name)
    assert isinstance(info.config, ConsumerConfig)
    assert info.config.filter_subject == "openmint.load.requested.v1.smollm2-135m.>"
