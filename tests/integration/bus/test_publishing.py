"""Publishing: once by id, with clear errors, and nothing more than one's rights."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import nats
import pytest
from nats.aio.client import Client
from nats.errors import TimeoutError as NatsTimeout

from openmint.bus.connection import Bus, connect_bus
from openmint.bus.dead_letters import bury, list_dead, replay_dead, show_dead
from openmint.bus.messages import RawMessage
from openmint.embedded.nats_server import EmbeddedNats, inbox_prefix
from openmint.errors import BadEvent, BadRequest, BusUnavailable, TooLarge
from openmint.events import DatasetRef, EngineLeft, JobProgressed, JobStarted, TrainRequested
from openmint.settings import CommonSettings

GOOD = b'{"policy": "reviews", "base": "smollm2-135m", "dataset": {"rows": [{"prompt": "a", "completion": "b"}]}}'


async def count(bus: Bus, stream: str) -> int:
    """Messages in a stream."""
    return (await bus.js.stream_info(stream)).state.messages


async def test_fact_is_stored_once_however_often_it_is_published(bus: Bus) -> None:
    fact = JobStarted(tenant="acme", job_id=uuid4(), policy="p", base="b", fence=1)
    for _ in range(3):
        await bus.publish_fact(fact)
    assert await count(bus, "EVENTS") == 1


async def test_command_above_the_bus_limit_is_refused_with_the_way_out(bus: Bus) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "x" * 1_100_000, "completion": "y"}]
    command = TrainRequested(policy="p", base="b", dataset=DatasetRef(rows=rows))
    with pytest.raises(TooLarge, match="openmint data put"):
        await bus.publish_command(command, command.subject("acme", "big"))
    assert await count(bus, "JOBS") == 0


async def test_soft_fact_without_a_stream_is_heard_by_whoever_listens(bus: Bus) -> None:
    heard = await bus.nc.subscribe(JobProgressed.subject_filter())
    await bus.nc.flush()
    progress = JobProgressed(tenant="acme", job_id=uuid4(), policy="p", base="b", step=1, steps=2)
    assert await bus.publish_soft(progress)
    message = await heard.next_msg(timeout=5)
    assert JobProgressed.model_validate_json(message.data) == progress
    await heard.unsubscribe()
    assert [await count(bus, name) for name in ("EVENTS", "RESIDENCY")] == [0, 0]


async def test_soft_fact_with_a_stream_is_kept(bus: Bus) -> None:
    assert await bus.publish_soft(EngineLeft(base="b", engine="serve-0", boot_id=uuid4()))
    assert await count(bus, "RESIDENCY") == 1


async def test_bus_that_is_not_there_is_said_to_be(nats_settings: CommonSettings) -> None:
    nowhere = nats_settings.model_copy(update={"nats_url": "nats://127.0.0.1:9"})
    with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:9: ConnectionRefusedError"):
        await connect_bus(nowhere, "test", timeout_s=1)


async def test_wrong_password_is_said_and_not_retried_for_ever(nats_settings: CommonSettings) -> None:
    with pytest.raises(BusUnavailable, match="Authorization Violation"):
        await connect_bus(nats_settings.model_copy(update={"nats_password": "wrong"}), "test", timeout_s=1)


async def test_dead_letter_of_the_largest_message_keeps_its_beginning(bus: Bus) -> None:
    raw = RawMessage("openmint.train.requested.v1.acme.big", b"x" * (1024 * 1024 - 100), {}, "JOBS", 7)
    await bury(bus, raw, BadEvent("line one\r\nNats-Forged: yes"), consumer="gateway-intake")
    await bury(bus, raw, BadEvent(), consumer="gateway-intake")
    (letter,) = await list_dead(bus)
    assert letter.is_truncated
    assert letter.detail == "line one\r\nNats-Forged: yes"
    assert "Nats-Forged" not in letter.headers
    with pytest.raises(BadRequest, match="give the whole body"):
        await replay_dead(bus, letter.seq)
    await replay_dead(bus, letter.seq, body=GOOD)
    assert await count(bus, "JOBS") == 1
    assert (await show_dead(bus, letter.seq)).event_id == "JOBS-7"


async def test_dead_letters_come_in_pages(bus: Bus) -> None:
    for number in range(5):
        raw = RawMessage("openmint.train.requested.v1.acme.x", b"{", {}, "JOBS", 1000 + number)
        await bury(bus, raw, BadEvent("broken"), consumer="gateway-intake")
    first = await list_dead(bus, limit=3)
    rest = await list_dead(bus, after=first[-1].seq, limit=3)
    assert [letter.stream_seq for letter in first + rest] == [1000, 1001, 1002, 1003, 1004]


@pytest.fixture
async def acme(nats_server: EmbeddedNats, bus: Bus) -> AsyncIterator[tuple[Client, list[str]]]:
    """A connection as the restricted user of tenant acme, and the errors that it was told."""
    user, password = nats_server.add_tenant_user("acme")
    errors: list[str] = []

    async def on_error(error: Exception) -> None:
        errors.append(str(error))

    client = await nats.connect(
        nats_server.url, user=user, password=password, error_cb=on_error, inbox_prefix=inbox_prefix("acme")
    )
    yield client, errors
    await client.close()


async def test_tenant_publishes_its_own_requests_and_gets_the_streams_ack(
    bus: Bus, acme: tuple[Client, list[str]]
) -> None:
    client, errors = acme
    ack = await client.jetstream().publish("openmint.train.requested.v1.acme.nightly", GOOD, timeout=5)
    assert (ack.stream, await count(bus, "JOBS"), errors) == ("JOBS", 1, [])


@pytest.mark.parametrize(
    "subject",
    [
        "openmint.train.requested.v1.rival.nightly",
        "openmint.train.requested.v2.acme.nightly",
        "openmint.job.accepted.v1.acme.x",
        "openmint.alias.moved.v1.acme.x",
        "openmint.load.requested.v1.base.acme.x",
        "$JS.API.STREAM.PURGE.JOBS",
        "$JS.API.STREAM.DELETE.EVENTS",
        "$JS.API.CONSUMER.MSG.NEXT.JOBS.gateway-intake",
        "_INBOX.anyone",
    ],
)
async def test_tenant_publishes_nothing_else(bus: Bus, acme: tuple[Client, list[str]], subject: str) -> None:
    client, errors = acme
    await client.publish(subject, GOOD)
    async with asyncio.timeout(10):
        while not errors:
            await client.flush()
    assert "permissions violation for publish" in errors[0].lower()
    assert await count(bus, "JOBS") == 0


@pytest.mark.parametrize(
    "subject", ["openmint.>", "openmint.job.accepted.v1.rival.>", "_INBOX.>", "_INBOX_rival.>", ">", "$JS.>"]
)
async def test_tenant_hears_nothing_of_others(acme: tuple[Client, list[str]], subject: str) -> None:
    client, errors = acme
    await client.subscribe(subject)
    async with asyncio.timeout(10):
        while not errors:
            await client.flush()
    assert "permissions violation for subscription" in errors[0].lower()


async def test_tenant_hears_the_answers_to_its_own_jobs(bus: Bus, acme: tuple[Client, list[str]]) -> None:
    client, errors = acme
    answers = await client.subscribe("openmint.job.*.v1.acme.>")
    await client.flush()
    fact = JobStarted(tenant="acme", job_id=uuid4(), policy="p", base="b", fence=1)
    await bus.publish_fact(fact.model_copy(update={"tenant": "rival"}))
    await bus.publish_fact(fact.model_copy(update={"event_id": uuid4()}))
    message = await answers.next_msg(timeout=5)
    assert message.subject == fact.subject()
    with pytest.raises(NatsTimeout):
        await answers.next_msg(timeout=0.2)
    assert errors == []


async def test_nobody_gets_in_without_a_password(nats_server: EmbeddedNats) -> None:
    with pytest.raises(nats.errors.Error):
        await nats.connect(nats_server.url, allow_reconnect=False, connect_timeout=3)
