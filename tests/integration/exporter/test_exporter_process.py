"""The exporter as a process: woken by the bus, telling what it did, ending on SIGTERM, surviving SIGKILL."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from openmint.bus.outbox import OutboxRelay
from openmint.bus.tail import tail
from openmint.catalog.rows import RevisionState
from openmint.events import RevisionExported

EXPORTED = RevisionState.EXPORTED


@pytest.fixture
def exporter_process(settings, tmp_path):
    """Starts `python -m openmint_exporter.app`; killed at the end if it still runs."""

    @asynccontextmanager
    async def start(**changes: str) -> AsyncGenerator[asyncio.subprocess.Process]:
        environment = {
            "OPENMINT_STATE_DIR": str(settings.state_dir),
            "OPENMINT_NATS_URL": settings.nats_url,
            "OPENMINT_NATS_USER": settings.nats_user,
            "OPENMINT_NATS_PASSWORD": settings.nats_password,
            "OPENMINT_POSTGRES_DSN": settings.postgres_dsn,
            "OPENMINT_STORE_URL": settings.store_url,
            "OPENMINT_HEALTH_FILE": str(tmp_path / "health.json"),
            "OMP_NUM_THREADS": "1",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "openmint_exporter.app",
            env={**os.environ, **environment, **changes},
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    return start


@pytest.fixture
async def heard(bus) -> AsyncGenerator[asyncio.Queue[RevisionExported]]:
    """Facts of exports as they come by on the bus."""
    queue: asyncio.Queue[RevisionExported] = asyncio.Queue()

    async def put(event) -> None:
        await queue.put(getattr(event, "event", event))

    task = asyncio.create_task(tail(bus, [RevisionExported], put, deliver="all", stream="EVENTS"))
    yield queue
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.slow
async def test_a_fact_on_the_bus_wakes_it_and_its_own_fact_goes_out(bus, catalog, wanted, exporter_process, heard):
    # A poll of a minute: only the bus can be what wakes it.
    async with exporter_process(OPENMINT_EXPORTER_POLL_S="60") as process:
        first = await wanted.revision(seed=1)
        relay = asyncio.create_task(OutboxRelay(catalog.pool, bus, "trainer").run())
        await wanted.until(first.revision_id, EXPORTED)
        second = await wanted.revision(seed=2)
        await wanted.until(second.revision_id, EXPORTED)
        relay.cancel()
        told = {(await asyncio.wait_for(heard.get(), 30)).revision_id for _ in range(2)}
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0
    assert told == {first.revision_id, second.revision_id}


@pytest.mark.slow
async def test_without_the_bus_saying_anything_it_finds_what_is_due(wanted, exporter_process):
    pending = await wanted.revision()
    async with exporter_process(OPENMINT_EXPORTER_POLL_S="0.2") as process:
        await wanted.until(pending.revision_id, EXPORTED)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0


@pytest.mark.slow
async def test_one_that_is_killed_is_replaced_by_another(wanted, exporter_process):
    short = {"OPENMINT_EXPORTER_POLL_S": "0.1", "OPENMINT_EXPORTER_LEASE_S": "2"}
    async with exporter_process(**short) as process:
        pending = [await wanted.revision(seed=seed) for seed in range(6)]
        await wanted.until(pending[0].revision_id, RevisionState.EXPORTING, EXPORTED)
        process.kill()
        await process.wait()
    async with exporter_process(**short):
        done = [await wanted.until(revision.revision_id, EXPORTED) for revision in pending]
    assert len({revision.digest for revision in done}) == 6
