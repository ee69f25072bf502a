"""Facts leave Postgres in order and reach the bus once, whatever dies in between."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from openmint.bus.connection import Bus, connect_bus
from openmint.bus.dead_letters import list_dead
from openmint.bus.outbox import BATCH_ROWS, OutboxRelay
from openmint.bus.provision import provision
from openmint.catalog import Catalog, outbox_rows
from openmint.embedded.nats_server import EmbeddedNats
from openmint.endings import end
from openmint.events import JobStarted, RevisionQuarantined
from openmint.settings import CommonSettings


def a_start(fence: int) -> JobStarted:
    """A fact whose place in the order can be read off it."""
    return JobStarted(tenant="acme", job_id=uuid4(), policy="reviews", base="smollm2-135m", fence=fence)


async def append(catalog: Catalog, facts: list[JobStarted], service: str = "trainer") -> None:
    """Write facts to the outbox in one transaction."""
    async with catalog.transaction() as conn:
        for fact in facts:
            await outbox_rows.append(conn, service, fact)


async def count_rows(catalog: Catalog) -> int:
    """How many facts still wait."""
    async with catalog.connection() as conn:
        return await conn.fetchval("select count(*) from outbox")


async def fences(bus: Bus) -> list[int]:
    """The facts in EVENTS, in the order of the stream."""
    state = (await bus.js.stream_info("EVENTS")).state
    found: list[int] = []
    for seq in range(state.first_seq, state.last_seq + 1):
        message = await bus.js.get_msg("EVENTS", seq=seq)
        found.append(JobStarted.model_validate_json(message.data or b"").fence)
    return found


async def until_empty(catalog: Catalog, timeout_s: float = 30.0) -> None:
    """Wait until nothing waits."""
    async with asyncio.timeout(timeout_s):
        while await count_rows(catalog):
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def running(relay: OutboxRelay) -> AsyncIterator[asyncio.Task[None]]:
    """The relay at work."""
    task = asyncio.create_task(relay.run())
    yield task
    await end(task)


async def test_facts_reach_the_bus_in_the_order_of_their_commits(catalog: Catalog, bus: Bus) -> None:
    for start in range(0, 2 * BATCH_ROWS + 50, 50):
        await append(catalog, [a_start(n) for n in range(start, start + 50)])
    async with running(OutboxRelay(catalog.pool, bus, "trainer")):
        await until_empty(catalog)
    assert await fences(bus) == list(range(2 * BATCH_ROWS + 50))


async def test_fact_of_a_transaction_that_failed_is_never_told(catalog: Catalog, bus: Bus) -> None:
    with pytest.raises(RuntimeError):
        async with catalog.transaction() as conn:
            await outbox_rows.append(conn, "trainer", a_start(1))
            raise RuntimeError("the transaction fails")
    async with running(OutboxRelay(catalog.pool, bus, "trainer")):
        await append(catalog, [a_start(2)])
        await until_empty(catalog)
    assert await fences(bus) == [2]


async def test_crash_between_publish_and_delete_tells_nothing_twice(catalog: Catalog, bus: Bus) -> None:
    await append(catalog, [a_start(n) for n in range(20)])
    relay = OutboxRelay(catalog.pool, bus, "trainer")
    with pytest.raises(RuntimeError):
        async with catalog.transaction() as conn:
            assert await relay.relay_once(conn) == 20
            raise RuntimeError("the relay dies before its delete is committed")
    assert await count_rows(catalog) == 20
    async with running(relay):
        await until_empty(catalog)
    assert await fences(bus) == list(range(20))


async def test_each_service_relays_its_own_facts(catalog: Catalog, bus: Bus) -> None:
    await append(catalog, [a_start(1)], service="trainer")
    await append(catalog, [a_start(2)], service="exporter")
    async with running(OutboxRelay(catalog.pool, bus, "exporter")):
        async with asyncio.timeout(10):
            while await count_rows(catalog) > 1:
                await asyncio.sleep(0.02)
    assert await fences(bus) == [2]


async def test_second_copy_takes_over_when_the_first_stops(catalog: Catalog, bus: Bus) -> None:
    first, second = OutboxRelay(catalog.pool, bus, "trainer"), OutboxRelay(catalog.pool, bus, "trainer")
    async with running(first):
        await append(catalog, [a_start(1)])
        await until_empty(catalog)
        async with running(second):
            await append(catalog, [a_start(2)])
            await until_empty(catalog)
            assert (first.relayed, second.relayed) == (2, 0)
    async with running(second):
        await append(catalog, [a_start(3)])
        await until_empty(catalog)
    assert await fences(bus) == [1, 2, 3]


async def test_fact_above_the_bus_limit_becomes_a_dead_letter_and_holds_up_nobody(catalog: Catalog, bus: Bus) -> None:
    huge = RevisionQuarantined(
        tenant="acme",
        revision_id=uuid4(),
        policy="reviews",
        base="smollm2-135m",
        digest="sha256:" + "a" * 64,
        number=1,
        reason="x" * 1_100_000,
    )
    async with catalog.transaction() as conn:
        await outbox_rows.append(conn, "trainer", huge)
        await outbox_rows.append(conn, "trainer", a_start(1))
    async with running(OutboxRelay(catalog.pool, bus, "trainer")):
        await until_empty(catalog)
    assert await fences(bus) == [1]
    (letter,) = await list_dead(bus)
    assert (letter.error_code, letter.is_truncated, letter.consumer) == ("too_large", True, "trainer-outbox")


@pytest.mark.slow
async def test_kill_of_the_server_loses_and_doubles_no_fact(
    catalog: Catalog, nats_settings: CommonSettings, tmp_path: Path
) -> None:
    server = EmbeddedNats(tmp_path)
    server.start()
    own = nats_settings.model_copy(update={"nats_url": server.url, "nats_password": server.password})
    bus = await connect_bus(own, "test")
    try:
        await provision(bus)
        async with running(OutboxRelay(catalog.pool, bus, "trainer")):
            for start in range(0, 400, 100):
                await append(catalog, [a_start(n) for n in range(start, start + 100)])
                await asyncio.sleep(0.02)
                server.kill()
                server.start()
            await until_empty(catalog)
        assert sorted(await fences(bus)) == list(range(400))
    finally:
        await bus.close()
        server.stop()
