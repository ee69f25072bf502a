"""The mutant: with fencing off the very things happen that fencing prevents. If these tests fail, the chaos run's
oracle would be blind."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from openmint.catalog import Catalog, checkpoints, jobs, revisions


@pytest.fixture
async def unfenced(catalog: Catalog) -> AsyncIterator[Catalog]:
    opened = await Catalog.open(catalog.dsn, max_size=2, fencing=False)
    yield opened
    await opened.close()


async def test_a_zombie_ends_a_job_a_second_time(world: Any, unfenced: Catalog) -> None:
    zombie = await world.running()
    await world.lapse_job(zombie.job_id)
    holder = await world.claim("trainer-2")
    async with unfenced.connection() as conn:
        await jobs.complete_job(conn, holder.job_id, holder.fence, 10, 1, 0.1)
        await jobs.complete_job(conn, zombie.job_id, zombie.fence, 10, 1, 0.9)
    assert (await world.subjects()).count("job.completed") == 2


async def test_a_zombie_overwrites_a_revision(world: Any, catalog: Catalog, unfenced: Catalog) -> None:
    zombie = await world.exporting()
    await world.lapse_revision(zombie.revision_id)
    stale, fresh = world.new_digest(), world.new_digest()
    async with unfenced.connection() as conn:
        holder = await revisions.claim_export(conn, "exporter-2", 60)
        assert holder is not None
        await revisions.commit_export(conn, holder.revision_id, holder.fence, fresh, {"rank": 8}, 1, 1)
        await revisions.commit_export(conn, zombie.revision_id, zombie.fence, stale, {"rank": 8}, 1, 1)
        assert (await revisions.find_revision(conn, zombie.revision_id)).digest == stale
    assert (await world.subjects()).count("revision.exported") == 2


async def test_a_zombie_overwrites_a_checkpoint_row(world: Any, unfenced: Catalog) -> None:
    zombie = await world.running()
    await world.lapse_job(zombie.job_id)
    holder = await world.claim("trainer-2")
    async with unfenced.connection() as conn:
        for job in (holder, zombie):
            await checkpoints.commit_checkpoint(
                conn, job.job_id, job.fence, 5, f"checkpoints/{job.fence}", bytes(32), 1, True
            )
        latest = await checkpoints.latest_checkpoint(conn, holder.job_id)
    assert latest is not None
    assert latest.fence == zombie.fence


async def test_the_switch_is_read_from_the_environment(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENMINT_UNSAFE_NO_FENCING", "1")
    opened = await Catalog.open(catalog.dsn)
    assert not opened.fencing
    await opened.close()
