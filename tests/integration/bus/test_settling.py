"""What becomes of a message, by what its handler did; all on a real server."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

import pytest
from faststream.nats import NatsBroker

from openmint.bus.broker import command_subscriber, fact_subscriber, make_broker
from openmint.bus.connection import Bus
from openmint.bus.dead_letters import DeadLetter, list_dead, replay_dead, show_dead
from openmint.bus.messages import RawMessage, Received
from openmint.bus.streams import MAX_TRIES, ConsumerPlan
from openmint.errors import BadRequest, CallerMistake, CatalogUnavailable, Fenced, NotFound, Overloaded
from openmint.events import CheckpointSaved, TrainRequested
from openmint.settings import CommonSettings

MakeConsumer = Callable[..., Awaitable[ConsumerPlan]]
GOOD = b'{"policy": "reviews", "base": "smollm2-135m", "dataset": {"rows": [{"prompt": "a", "completion": "b"}]}}'


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


@pytest.mark.parametrize(
    ("body", "detail", "field"),
    [
        (b"", "empty", None),
        (b"\xff\xfe", "not JSON", None),
        (b'{"policy": NaN}', "not JSON", None),
        (b'{"policy": "a", "policy": "b"}', "'policy' occurs twice", None),
        (b"[1]", "a JSON array", None),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested more than 64 deep", None),
        (GOOD[:-1] + b', "learning_rat": 1}', "unknown field 'learning_rat'", None),
        (GOOD[:-1] + b', "adapter": {"rank": 0}}', "greater than or equal to 1", "adapter.rank"),
        (GOOD[:-1] + b', "adapter": {"rank": 100000}}', "less than or equal to 256", "adapter.rank"),
        (GOOD[:-1] + b', "tenant": "rival"}', "says tenant 'rival', the subject says 'acme'", "tenant"),
    ],
)
async def test_unreadable_request_is_refused_to_its_author_and_kept_as_a_dead_letter(
    bus: Bus, broker: NatsBroker, body: bytes, detail: str, field: str | None
) -> None:
    refused: list[tuple[RawMessage, CallerMistake]] = []

    async def refuse(raw: RawMessage, mistake: CallerMistake) -> None:
        refused.append((raw, mistake))

    @command_subscriber(broker, "gateway", TrainRequested, refuse=refuse)
    async def on_train_requested(received: Received[TrainRequested]) -> None:
        raise AssertionError("must not be called")

    await broker.start()
    await bus.nc.publish("openmint.train.requested.v1.acme.job-1", body)
    letter = await a_dead_letter(bus)
    assert detail in letter.detail
    assert letter.field == field
    assert letter.error_code == "bad_event"
    assert (letter.subject, letter.data, letter.consumer) == (
        "openmint.train.requested.v1.acme.job-1",
        body,
        "gateway-intake",
    )
    (raw, mistake) = refused[0]
    assert (raw.tenant, raw.token, raw.event_id) == ("acme", "job-1", f"JOBS-{letter.stream_seq}")
    assert detail in mistake.detail
    await until(lambda: _is_empty(bus, "JOBS"))


async def _is_empty(bus: Bus, stream: str) -> bool:
    return (await bus.js.stream_info(stream)).state.messages == 0


async def test_subject_with_a_malformed_token_is_dead_and_nobody_is_answered(bus: Bus, broker: NatsBroker) -> None:
    refused: list[RawMessage] = []

    async def refuse(raw: RawMessage, mistake: CallerMistake) -> None:
        refused.append(raw)

    @command_subscriber(broker, "gateway", TrainRequested, refuse=refuse)
    async def on_train_requested(received: Received[TrainRequested]) -> None:
        raise AssertionError("must not be called")

    await broker.start()
    await bus.nc.publish("openmint.train.requested.v1.acme.JOB", GOOD)
    assert "last token of the subject" in (await a_dead_letter(bus)).detail
    await bus.nc.publish("openmint.train.requested.v1.acme.a.b", GOOD)
    await until(lambda: _is_empty(bus, "JOBS"))
    assert refused == []


async def test_request_that_the_handler_refuses_is_answered_and_done_with(bus: Bus, broker: NatsBroker) -> None:
    refused: list[str] = []

    async def refuse(raw: RawMessage, mistake: CallerMistake) -> None:
        refused.append(mistake.detail)

    @command_subscriber(broker, "gateway", TrainRequested, refuse=refuse)
    async def on_train_requested(received: Received[TrainRequested]) -> None:
        raise NotFound("there is no base model 'smollm2-135m'", field="base")

    await broker.start()
    await bus.nc.publish("openmint.train.requested.v1.acme.job-1", GOOD)
    await until(lambda: bool(refused))
    await until(lambda: _is_empty(bus, "JOBS"))
    assert await list_dead(bus) == []


async def test_bare_body_is_a_command_and_its_id_is_stream_and_sequence(bus: Bus, broker: NatsBroker) -> None:
    seen: list[Received[TrainRequested]] = []

    @command_subscriber(broker, "gateway", TrainRequested)
    async def on_train_requested(received: Received[TrainRequested]) -> None:
        seen.append(received)

    await broker.start()
    await bus.nc.publish("openmint.train.requested.v1.acme.job-1", GOOD)
    await until(lambda: bool(seen))
    assert seen[0].event_id == f"JOBS-{seen[0].raw.seq}"
    assert (seen[0].tenant, seen[0].event.policy) == ("acme", "reviews")


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


async def test_mended_dead_letter_is_handled_under_its_old_id(bus: Bus, broker: NatsBroker) -> None:
    seen: list[Received[TrainRequested]] = []

    @command_subscriber(broker, "gateway", TrainRequested)
    async def on_train_requested(received: Received[TrainRequested]) -> None:
        seen.append(received)

    await broker.start()
    await bus.nc.publish("openmint.train.requested.v1.acme.job-1", GOOD[:-1] + b', "recip": "sft"}')
    letter = await a_dead_letter(bus)
    assert (await show_dead(bus, letter.seq)) == letter
    await replay_dead(bus, letter.seq, body=GOOD)
    await until(lambda: bool(seen))
    assert (seen[0].event_id, seen[0].tenant, seen[0].event.recipe) == (letter.event_id, "acme", "sft")
    await until(lambda: _is_empty(bus, "JOBS"))


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


async def test_dead_letter_that_is_not_there_is_not_found(bus: Bus) -> None:
    with pytest.raises(NotFound, match="no dead letter 987654"):
        await show_dead(bus, 987654)
