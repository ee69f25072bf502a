"""The keeper as it runs: a process of its own, a real bus, a real database, and SIGTERM."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from openmint.bus.connection import Bus
from openmint.catalog import Catalog
from openmint.catalog.revisions import find_revision
from openmint.catalog.rows import RevisionState
from openmint.events import AdapterCondemned
from openmint.identifiers import new_id
from openmint.settings import CommonSettings

PATIENCE_S = 60.0


@pytest.fixture
async def keeper(settings: CommonSettings, bus: Bus, tmp_path: Path) -> AsyncIterator[Process]:
    environment = os.environ | {
        "OPENMINT_STATE_DIR": str(settings.state_dir),
        "OPENMINT_NATS_URL": settings.nats_url,
        "OPENMINT_NATS_USER": settings.nats_user,
        "OPENMINT_NATS_PASSWORD": settings.nats_password,
        "OPENMINT_POSTGRES_DSN": settings.postgres_dsn,
        "OPENMINT_STORE_URL": settings.store_url,
        "OPENMINT_KEEPER_EVERY_S": "0.1",
        "OPENMINT_KEEPER_ANNOUNCE_AFTER_S": "0.2",
        "OPENMINT_HEALTH_FILE": str(tmp_path / "health.json"),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "openmint_keeper.app", env=environment, stdout=PIPE, stderr=DEVNULL
    )
    yield process
    if process.returncode is None:
        process.kill()
        await process.wait()


@pytest.mark.slow
async def test_a_hint_that_was_lost_arrives_after_all_and_sigterm_ends_it(
    keeper: Process, tenancy: Any, catalog: Catalog, bus: Bus
) -> None:
    job = await tenancy.accept()
    # The outbox row is gone without having been sent: the bus and all that it held were lost.
    await tenancy.execute("delete from outbox")
    subscription = await bus.js.subscribe(f"openmint.job.accepted.v1.acme.{job.job_id}", ordered_consumer=True)
    first = await subscription.next_msg(timeout=PATIENCE_S)
    second = await subscription.next_msg(timeout=PATIENCE_S)
    assert first.headers is not None and second.headers is not None
    assert first.headers["ce-id"] == second.headers["ce-id"] == str(job.hint_event_id)
    assert first.headers["Nats-Msg-Id"] != second.headers["Nats-Msg-Id"]
    await subscription.unsubscribe()

    keeper.send_signal(signal.SIGTERM)
    output, _ = await asyncio.wait_for(keeper.communicate(), PATIENCE_S)
    assert keeper.returncode == 0
    assert b"keeper.stopped" in output
    assert b"step.announced_again" in output


@pytest.mark.slow
async def test_a_condemned_adapter_is_quarantined_wherever_it_is_a_revision(
    keeper: Process, tenancy: Any, catalog: Catalog, bus: Bus
) -> None:
    bad, good = "sha256:" + "d" * 64, "sha256:" + "e" * 64
    revisions = [await tenancy.exported(bad), await tenancy.exported(bad), await tenancy.exported(good)]
    fact = AdapterCondemned(base="tiny", engine="one", digest=bad, failures=2, reason="alone it gave no finite answer")
    assert await bus.publish_soft(fact)
    assert await bus.publish_soft(fact.model_copy(update={"event_id": new_id()}))
    async with asyncio.timeout(PATIENCE_S):
        while True:
            async with catalog.connection() as conn:
                seen = [await find_revision(conn, revision.revision_id) for revision in revisions]
            if seen[0].state is RevisionState.QUARANTINED and seen[1].state is RevisionState.QUARANTINED:
                break
            await asyncio.sleep(0.05)
    assert seen[0].reason == "alone it gave no finite answer"
    assert seen[2].state is RevisionState.EXPORTED
