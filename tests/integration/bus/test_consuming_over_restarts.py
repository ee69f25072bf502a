"""A durable consumer of FastStream over kills of the server, and a relay over kills of the database."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from openmint.bus.broker import fact_subscriber, make_broker
from openmint.bus.connection import Bus, connect_bus
from openmint.bus.outbox import OutboxRelay
from openmint.bus.provision import consumers_exist, provision
from openmint.catalog import Catalog, outbox_rows
from openmint.catalog.migrate import migrate
from openmint.embedded.nats_server import EmbeddedNats
from openmint.embedded.postgres_server import EmbeddedPostgres
from openmint.endings import end
from openmint.errors import OpenmintError
from openmint.events import CheckpointSaved, JobStarted
from openmint.settings import CommonSettings

pytestmark = pytest.mark.slow


async def until(condition: Callable[[], bool], timeout_s: float = 40.0) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


def a_checkpoint(step: int) -> CheckpointSaved:
    """A fact whose step tells it from others."""
    return CheckpointSaved(
        tenant="acme", checkpoint_id=uuid4(), job_id=uuid4(), policy="p", base="b", step=step, checkpoint_bytes=1
    )


async def publish(bus: Bus, fact: CheckpointSaved) -> None:
    """Publish until the stream has it."""
    while not await bus.publish_soft(fact):
        await asyncio.sleep(0.1)


async def test_consumer_goes_on_after_the_server_was_killed(nats_settings: CommonSettings, tmp_path: Path) -> None:
    server = EmbeddedNats(tmp_path)
    server.start()
    own = nats_settings.model_copy(update={"nats_url": server.url, "nats_password": server.password})
    bus, broker = await connect_bus(own, "test"), make_broker(own, "exporter")
    seen: list[int] = []

    @fact_subscriber(broker, "exporter", CheckpointSaved)
    async def on_checkpoint_saved(event: CheckpointSaved) -> None:
        seen.append(event.step)

    try:
        await provision(bus)
        assert await consumers_exist(bus, "exporter")
        await broker.start()
        await publish(bus, a_checkpoint(1))
        await until(lambda: 1 in seen)
        server.kill()
        server.start()
        await publish(bus, a_checkpoint(2))
        await until(lambda: 2 in seen)
    finally:
        await broker.stop()
        await bus.close()
        server.stop()
    assert seen[0] == 1


async def test_deleted_consumer_shows_in_readiness(bus: Bus) -> None:
    assert await consumers_exist(bus, "exporter")
    await bus.js.delete_consumer("EVENTS", "exporter-checkpoint-saved")
    assert not await consumers_exist(bus, "exporter")


@pytest.mark.slow
async def test_relay_goes_on_after_the_database_was_killed(bus: Bus, tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path)
    await asyncio.to_thread(server.start)
    catalog: Catalog | None = None
    try:
        await migrate(server.dsn)
        catalog = await Catalog.open(server.dsn, max_size=4)
        relay = OutboxRelay(catalog.pool, bus, "trainer")
        running = asyncio.create_task(relay.run())
        await _append(catalog, 1)
        await until(lambda: relay.relayed == 1)
        server.kill()
        await asyncio.to_thread(server.start)
        await _append(catalog, 2)
        await until(lambda: relay.relayed == 2)
        await end(running)
    finally:
        if catalog is not None:
            await catalog.close()
        server.erase()


async def _append(catalog: Catalog, fence: int) -> None:
    while True:
        with contextlib.suppress(OpenmintError):
            async with catalog.transaction() as conn:
                fact = JobStarted(tenant="acme", job_id=uuid4(), policy="p", base="b", fence=fence)
                await outbox_rows.append(conn, "trainer", fact)
            return
        await asyncio.sleep(0.1)
