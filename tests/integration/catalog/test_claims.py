import asyncio
from collections import Counter
from typing import Any

from openmint.catalog import Catalog, jobs, revisions, tenants


async def test_concurrent_claimers_never_get_the_same_job(world: Any, catalog: Catalog) -> None:
    accepted = {(await world.accept(f"poet-{number}")).job_id for number in range(12)}

    async def claim_until_nothing_is_left(owner: str) -> list[Any]:
        got = []
        for _ in range(6):
            async with catalog.connection() as conn:
                job = await jobs.claim_job(conn, "tiny", owner, 60)
            if job is not None:
                got.append(job)
        return got

    claims = await asyncio.gather(*(claim_until_nothing_is_left(f"trainer-{number}") for number in range(20)))
    claimed = [job.job_id for got in claims for job in got]
    assert Counter(claimed) == Counter(accepted)
    assert all(job.fence == 1 for got in claims for job in got)


async def test_concurrent_exporters_never_get_the_same_revision(world: Any, catalog: Catalog) -> None:
    pending = {(await world.pending(f"poet-{number}")).revision_id for number in range(6)}

    async def claim_twice(owner: str) -> list[Any]:
        got = []
        for _ in range(4):
            async with catalog.connection() as conn:
                got.append(await revisions.claim_export(conn, owner, 60))
        return [revision for revision in got if revision is not None]

    claims = await asyncio.gather(*(claim_twice(f"exporter-{number}") for number in range(20)))
    assert Counter(revision.revision_id for got in claims for revision in got) == Counter(pending)


async def test_a_policy_trains_in_one_job_at_a_time(world: Any, catalog: Catalog) -> None:
    first, second = await world.accept("poet"), await world.accept("poet")
    running = await world.claim()
    assert running.job_id == first.job_id
    async with catalog.connection() as conn:
        assert await jobs.claim_job(conn, "tiny", "trainer-2", 60) is None
        await jobs.complete_job(conn, running.job_id, running.fence, 10, 1, None)
    assert (await world.claim()).job_id == second.job_id


async def test_racing_claims_on_one_policy_start_one_job(world: Any, catalog: Catalog) -> None:
    for _ in range(4):
        await world.accept("poet")

    async def claim(owner: str) -> Any:
        async with catalog.connection() as conn:
            return await jobs.claim_job(conn, "tiny", owner, 60)

    claims = await asyncio.gather(*(claim(f"trainer-{number}") for number in range(8)))
    assert sum(job is not None for job in claims) == 1


async def test_a_busy_tenant_does_not_keep_a_quiet_one_waiting(world: Any) -> None:
    for number in range(5):
        await world.accept(f"many-{number}", "acme")
    await world.accept("single", "rival")
    claimed = [await world.claim() for _ in range(3)]
    assert [job.tenant for job in claimed] == ["acme", "rival", "acme"]


async def test_weights_divide_the_trainers(world: Any, catalog: Catalog) -> None:
    async with catalog.transaction() as conn:
        await tenants.ensure_tenant(conn, "acme", weight=3)
        await tenants.ensure_tenant(conn, "rival", weight=1)
    for number in range(8):
        await world.accept(f"a-{number}", "acme")
        await world.accept(f"r-{number}", "rival")
    claimed = Counter([(await world.claim()).tenant for _ in range(8)])
    assert claimed == {"acme": 6, "rival": 2}


async def test_within_a_tenant_the_oldest_comes_first(world: Any) -> None:
    made = [await world.accept(f"poet-{number}") for number in range(3)]
    assert [(await world.claim()).job_id for _ in range(3)] == [job.job_id for job in made]


async def test_exports_are_shared_fairly_too(world: Any, catalog: Catalog) -> None:
    for number in range(3):
        await world.pending(f"many-{number}", "acme")
    await world.pending("single", "rival")
    async with catalog.connection() as conn:
        claimed = [await revisions.claim_export(conn, "exporter-1", 60) for _ in range(4)]
        assert await revisions.claim_export(conn, "exporter-1", 60) is None
    assert [revision.tenant for revision in claimed if revision] == ["acme", "rival", "acme", "acme"]


async def test_a_trainer_gets_only_jobs_of_its_base(world: Any, catalog: Catalog) -> None:
    await world.accept()
    async with catalog.connection() as conn:
        assert await jobs.claim_job(conn, "other", "trainer-1", 60) is None
