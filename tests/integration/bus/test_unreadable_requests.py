"""Requests that can't be honoured: each is answered, kept if it can't be read, and stops nobody."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from faststream.nats import NatsBroker

from openmint.bus.broker import command_subscriber
from openmint.bus.connection import Bus
from openmint.bus.dead_letters import DeadLetter, list_dead, replay_dead, show_dead
from openmint.bus.messages import RawMessage, Received
from openmint.errors import CallerMistake, NotFound
from openmint.events import TrainRequested

GOOD = b'{"policy": "reviews", "base": "smollm2-135m", "dataset": {"rows": [{"prompt": "a", "completion": "b"}]}}'


async def until(condition: Callable[[], Awaitable[bool] | bool], timeout_s: float = 20.0) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(timeout_s):
        while True:
            held = condition()
            if held if isinstance(held, bool) else await held:
                return
            await asyncio.sleep(0.02)


async def a_dead_letter(bus: Bus) -> DeadLetter:
    """The first dead letter, once it is there."""
    async with asyncio.timeout(20):
        while not (found := await list_dead(bus)):
            await asyncio.sleep(0.02)
    return found[0]


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


async def test_dead_letter_that_is_not_there_is_not_found(bus: Bus) -> None:
    with pytest.raises(NotFound, match="no dead letter 987654"):
        await show_dead(bus, 987654)
