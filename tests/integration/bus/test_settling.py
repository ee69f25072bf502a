"""What becomes of a message, by what its handler did; all on a real server."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

import pytest
from faststream.nats import NatsBroker

from openmint.bus.broker import fact_subscriber, make_broker
from openmint.bus.connection import Bus
from openmint.bus.dead_letters import DeadLetter, list_dead, replay_dead
from openmint.bus.streams import MAX_TRIES, ConsumerPlan
from openmint.errors import BadRequest, CatalogUnavailable, Fenced, Overloaded
from openmint.events import CheckpointSaved
from openmint.settings import CommonSettings

MakeConsumer = Callable[..., Awaitable[ConsumerPlan]]


def a_checkpoint(step: int = 10, tenant: str = "acme") -> CheckpointSaved:
    """A fact with nothing special about it."""
    return CheckpointSaved(
        tenant=tenant,
        checkpoint_id=uuid4(),
        job_id=uuid4(),
        policy="reviews",
        base="smollm2-135m",
        step=step,
        checkpoint_bytes=1000,
    )


async def until(condition: Callable[[], Awaitable[bool] | bool], timeout_s: float = 20.0) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(timeout_s):
        while True:
            held = condition()
            if held if isinstance(held, bool) else await held:
                return
            await asyncio.sleep(0.02)


async def settled(bus: Bus, plan: ConsumerPlan) -> bool:
    """Has the consumer nothing left?"""
    info = await bus.js.consumer_info(plan.stream, plan.name)
    return not info.num_pending and not info.num_ack_pending


async def a_dead_letter(bus: Bus) -> DeadLetter:
    """The first dead letter, once it is there."""
    async with asyncio.timeout(20):
        while not (found := await list_dead(bus)):
            await asyncio.sleep(0.02)
    return found[0]


async def test_handled_message_is_acked(bus: Bus, broker: NatsBroker, a_consumer: MakeConsumer) -> None:
    plan = await a_consumer()
    seen: list[CheckpointSaved] = []

    @fact_subscriber(broker, "test", CheckpointSaved, plan=plan)
    async def on_checkpoint_saved(event: CheckpointSaved) -> None:
        seen.append(event)

    await broker.start()
    fact = a_checkpoint()
    await bus.publish_fact(fact)
    await until(lambda: bool(seen))
    await until(lambda: settled(bus, plan))
    assert seen == [fact]


async def test_same_fact_published_twice_is_handled_once(
    bus: Bus, broker: NatsBroker, a_consumer: MakeConsumer
) -> None:
    plan = await a_consumer()
    seen: list[int] = []

    @fact_subscriber(broker, "test", CheckpointSaved, plan=plan)
    async def on_checkpoint_saved(event: CheckpointSaved) -> None:
        seen.append(event.step)

    await broker.start()
    first = a_checkpoint(step=1)
    await bus.publish_fact(first)
    await bus.publish_fact(first)
    await bus.publish_fact(a_checkpoint(step=2))
    await until(lambda: 2 in seen)
    assert seen == [1, 2]


async def test_failure_that_may_pass_is_retried_after_a_rest(
    bus: Bus, broker: NatsBroker, a_consumer: MakeConsumer
) -> None:
    plan = await a_consumer()
    at: list[float] = []

    @fact_subscriber(broker, "test", CheckpointSaved, plan=plan)
    async def on_checkpoint_saved(event: CheckpointSaved) -> None:
        at.append(time.monotonic())
        if len(at) < 3:
            raise Overloaded(retry_after_s=0.2)

    await broker.start()
    await bus.publish_fact(a_checkpoint())
    await until(lambda: settled(bus, plan))
    assert len(at) == 3
    assert all(later - sooner >= 0.19 for sooner, later in itertools.pairwise(at))
    assert await list_dead(bus) == []


async def test_failure_that_stays_becomes_a_dead_letter(bus: Bus, broker: NatsBroker, a_consumer: MakeConsumer) -> None:
    plan = await a_consumer()
    calls: list[int] = []

    @fact_subscriber(broker, "test", CheckpointSaved, plan=plan)
    async def on_checkpoint_saved(event: CheckpointSaved) -> None:
        calls.append(event.step)
        raise Overloaded("the queue is full", retry_after_s=0.01)

    await broker.start()
    fact = a_checkpoint()
    await bus.publish_fact(fact)
    letter = await a_dead_letter(bus)
    await until(lambda: settled(bus, plan))
    assert len(calls) == letter.deliveries == MAX_TRIES
    assert (letter.event_id, letter.error_code, letter.detail) == (
        str(fact.event_id),
        "overloaded",
        "the queue is full",
    )


async def test_bug_in_a_handler_does_not_lose_the_message(
    bus: Bus, broker: NatsBroker, a_consumer: MakeConsumer
) -> None:
    plan = await a_consumer()
    calls: list[int] = []

    @fact_subscriber(broker, "test", CheckpointSaved, plan=plan)
    async def on_checkpoint_saved(event: CheckpointSaved) -> None:
        calls.append(event.step)
        if len(calls) == 1:
            raise ValueError("a bug")

    await broker.start()
    await bus.publish_fact(a_checkpoint())
    await until(lambda: settled(bus, plan))
    assert len(calls) == 2


@pytest.mark.slow
async def test_outage_of_ours_uses_up_no_tries(bus: Bus, broker: NatsBroker, a_consumer: MakeConsumer) -> None:
    plan = await a_consumer(ack_wait_s=1.0)
    calls: list[int] = []

    @fact_subscriber(broker, "test", CheckpointSaved, plan=plan)
    async def on_checkpoint_saved(event: CheckpointSaved) -> None:
        calls.append(event.step)
        if len(calls) < 4:
            raise CatalogUnavailable

    await broker.start()
    await bus.publish_fact(a_checkpoint())
    await until(lambda: settled(bus, plan))
    info = await bus.js.consumer_info(plan.stream, plan.name)
    assert len(calls) == 4
    assert info.delivered is not None
    assert info.delivered.consumer_seq == 1


async def test_replaced_writer_leaves_the_message_to_its_successor(
    bus: Bus, broker: NatsBroker, a_consumer: MakeConsumer
) -> None:
    plan = await a_consumer()
    calls: list[int] = []

    @fact_subscriber(broker, "test", CheckpointSaved, plan=plan)
    async def on_checkpoint_saved(event: CheckpointSaved) -> None:
        calls.append(event.step)
        raise Fenced

    await broker.start()
    await bus.publish_fact(a_checkpoint())
    await until(lambda: bool(calls))
    await until(lambda: settled(bus, plan))
    assert len(calls) == 1
    assert await list_dead(bus) == []


@pytest.mark.slow
async def test_beat_holds_the_ack_of_long_work(bus: Bus, broker: NatsBroker, a_consumer: MakeConsumer) -> None:
    plan = await a_consumer(ack_wait_s=1.5)
    calls: list[int] = []

    @fact_subscriber(broker, "test", CheckpointSaved, plan=plan)
    async def on_checkpoint_saved(event: CheckpointSaved) -> None:
        calls.append(event.step)
        await asyncio.sleep(3.2)

    await broker.start()
    await bus.publish_fact(a_checkpoint())
    await until(lambda: settled(bus, plan))
    assert calls == [10]


async def test_message_of_a_handler_that_is_stopped_goes_to_another_at_once(
    bus: Bus, broker: NatsBroker, a_consumer: MakeConsumer, nats_settings: CommonSettings
) -> None:
    plan = await a_consumer()
    started = asyncio.Event()
    seen: list[str] = []
    stopping = make_broker(nats_settings, "test")
    stopping.config.broker_config.graceful_timeout = 0.1

    @fact_subscriber(stopping, "test", CheckpointSaved, plan=plan)
    async def never_ends(event: CheckpointSaved) -> None:
        started.set()
        await asyncio.sleep(60)

    @fact_subscriber(broker, "test", CheckpointSaved, plan=plan)
    async def on_checkpoint_saved(event: CheckpointSaved) -> None:
        seen.append("again")

    await stopping.start()
    await bus.publish_fact(a_checkpoint())
    await asyncio.wait_for(started.wait(), 10)
    await stopping.stop()
    await broker.start()
    await until(lambda: bool(seen), timeout_s=15)


async def test_message_that_ends_every_process_is_buried_without_calling_its_handler(
    bus: Bus, broker: NatsBroker, a_consumer: MakeConsumer
) -> None:
    """A raw consumer takes it MAX_TRIES times and never answers, as processes do that die of it."""
    plan = await a_consumer()
    await bus.publish_fact(a_checkpoint())
    dying = await bus.js.pull_subscribe_bind(plan.name, plan.stream)
    for _ in range(MAX_TRIES):
        (message,) = await dying.fetch(1, timeout=10)
        await message.nak()
    calls: list[int] = []

    @fact_subscriber(broker, "test", CheckpointSaved, plan=plan)
    async def on_checkpoint_saved(event: CheckpointSaved) -> None:
        calls.append(event.step)

    await broker.start()
    letter = await a_dead_letter(bus)
    await until(lambda: settled(bus, plan))
    assert (letter.error_code, calls) == ("tries_used_up", [])


async def test_unacked_message_of_a_dead_process_comes_again(
    bus: Bus, broker: NatsBroker, a_consumer: MakeConsumer
) -> None:
    plan = await a_consumer(ack_wait_s=1.0)
    fact = a_checkpoint()
    await bus.publish_fact(fact)
    dying = await bus.js.pull_subscribe_bind(plan.name, plan.stream)
    await dying.fetch(1, timeout=10)
    seen: list[CheckpointSaved] = []

    @fact_subscriber(broker, "test", CheckpointSaved, plan=plan)
    async def on_checkpoint_saved(event: CheckpointSaved) -> None:
        seen.append(event)

    await broker.start()
    await until(lambda: bool(seen))
    assert seen == [fact]


async def test_replay_is_taken_although_the_stream_knows_the_message(
    bus: Bus, broker: NatsBroker, a_consumer: MakeConsumer
) -> None:
    plan = await a_consumer()
    calls: list[CheckpointSaved] = []

    @fact_subscriber(broker, "test", CheckpointSaved, plan=plan)
    async def on_checkpoint_saved(event: CheckpointSaved) -> None:
        calls.append(event)
        if len(calls) == 1:
            raise BadRequest("not yet")

    await broker.start()
    fact = a_checkpoint()
    await bus.publish_fact(fact)
    letter = await a_dead_letter(bus)
    await replay_dead(bus, letter.seq)
    await until(lambda: len(calls) == 2)
    assert calls[1] == fact
