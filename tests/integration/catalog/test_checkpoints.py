import json
from typing import Any

from openmint.catalog import Catalog, checkpoints, jobs


async def test_a_checkpoint_with_a_wanted_revision_is_told_with_it(world: Any, catalog: Catalog) -> None:
    job = await world.running()
    checkpoint, revision = await world.checkpoint(job, step=5)
    async with catalog.connection() as conn:
        body = json.loads(await conn.fetchval("select payload from outbox order by id desc limit 1"))
    assert body["revision_id"] == str(revision.revision_id)
    assert body["event_id"] == str(checkpoint.hint_event_id)
    assert (revision.state, revision.step, revision.digest) == ("pending", 5, None)


async def test_a_checkpoint_committed_twice_is_told_once(world: Any) -> None:
    job = await world.running()
    assert await world.checkpoint(job, step=5) == await world.checkpoint(job, step=5)
    assert await world.subjects() == ["job.accepted", "job.started", "checkpoint.saved"]


async def test_without_a_wanted_revision_there_is_none(world: Any, catalog: Catalog) -> None:
    job = await world.running()
    _, revision = await world.checkpoint(job, step=5, want=False)
    assert revision is None
    # The last step may turn out to be one that was saved already; its revision is then wanted of that checkpoint.
    again, revision = await world.checkpoint(job, step=5, want=True)
    assert revision is not None
    assert revision.checkpoint_id == again.checkpoint_id


async def test_a_job_resumes_from_its_last_checkpoint(world: Any, catalog: Catalog) -> None:
    job = await world.running()
    async with catalog.connection() as conn:
        assert await checkpoints.latest_checkpoint(conn, job.job_id) is None
        await world.checkpoint(job, step=5)
        last, _ = await world.checkpoint(job, step=10)
        assert await checkpoints.latest_checkpoint(conn, job.job_id) == last
        assert await checkpoints.find_checkpoint(conn, last.checkpoint_id) == last
        assert (await jobs.find_job(conn, job.job_id)).step == 10


async def test_progress_gives_a_job_its_tries_back(world: Any, catalog: Catalog) -> None:
    job = await world.running()
    await world.lapse_job(job.job_id)
    second = await world.claim()
    assert second.tries == 2
    await world.checkpoint(second, step=5)
    async with catalog.connection() as conn:
        assert (await jobs.find_job(conn, job.job_id)).tries == 0


async def test_only_checkpoints_that_nobody_needs_are_superseded(world: Any, catalog: Catalog) -> None:
    job = await world.running()
    first, _ = await world.checkpoint(job, step=1, want=False)
    await world.checkpoint(job, step=2, want=True)
    await world.checkpoint(job, step=3, want=False)
    async with catalog.connection() as conn:
        assert await checkpoints.superseded_checkpoints(conn, 0) == []
        await jobs.complete_job(conn, job.job_id, job.fence, 3, 1, None)
        assert await checkpoints.superseded_checkpoints(conn, 0) == [first]
        assert await checkpoints.superseded_checkpoints(conn, 3600) == []
        await checkpoints.mark_files_gone(conn, first.checkpoint_id)
        assert await checkpoints.superseded_checkpoints(conn, 0) == []
