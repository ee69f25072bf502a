"""The trigger, tried with plain SQL: what no function of ours does, no other client can do either."""

import itertools
from typing import Any

import asyncpg
import pytest

from openmint.catalog import Catalog
from openmint.catalog.rows import JobState, RevisionState
from openmint.catalog.transitions import JOB_TRANSITIONS, REVISION_TRANSITIONS

ILLEGAL = "OM422"


async def test_python_and_sql_hold_the_same_table(catalog: Catalog) -> None:
    async with catalog.connection() as conn:
        rows = await conn.fetch("select machine, from_state, to_state from transitions")
        enums = await conn.fetch(
            "select t.typname as name, array_agg(e.enumlabel::text) as labels"
            " from pg_enum e join pg_type t on t.oid = e.enumtypid group by 1"
        )
    in_sql = {(row["machine"], row["from_state"], row["to_state"]) for row in rows}
    jobs_in_python = {("job", str(before or ""), str(after)) for before, after in JOB_TRANSITIONS}
    revisions_in_python = {("revision", str(before or ""), str(after)) for before, after in REVISION_TRANSITIONS}
    assert in_sql == jobs_in_python | revisions_in_python
    labels = {row["name"]: set(row["labels"]) for row in enums}
    assert labels == {"job_state": set(JobState), "revision_state": set(RevisionState)}


async def _force(conn: Any, table: str, column: str, key: Any, state: str) -> None:
    await conn.execute("set local openmint.unsafe_no_fencing = 'on'")
    await conn.execute(f"update {table} set state = $2 where {column} = $1", key, state)
    await conn.execute("set local openmint.unsafe_no_fencing = 'off'")


async def test_each_pair_of_job_states_is_allowed_or_refused_by_the_table(world: Any, catalog: Catalog) -> None:
    job = await world.running()
    for before, after in itertools.permutations(JobState, 2):
        async with catalog.connection() as conn:
            transaction = conn.transaction()
            await transaction.start()
            await _force(conn, "jobs", "job_id", job.job_id, before)
            refused = await _refused(conn, "update jobs set state = $2 where job_id = $1", job.job_id, after)
            await transaction.rollback()
        assert refused == ((before, after) not in JOB_TRANSITIONS), (before, after)


async def test_each_pair_of_revision_states_is_allowed_or_refused_by_the_table(world: Any, catalog: Catalog) -> None:
    revision = await world.evaluating()
    for before, after in itertools.permutations(RevisionState, 2):
        async with catalog.connection() as conn:
            transaction = conn.transaction()
            await transaction.start()
            await _force(conn, "revisions", "revision_id", revision.revision_id, before)
            refused = await _refused(
                conn, "update revisions set state = $2 where revision_id = $1", revision.revision_id, after
            )
            await transaction.rollback()
        assert refused == ((before, after) not in REVISION_TRANSITIONS), (before, after)


@pytest.mark.parametrize("state", ["running", "completed", "failed", "cancelled"])
async def test_a_job_begins_accepted(world: Any, catalog: Catalog, state: str) -> None:
    await world.accept()
    async with catalog.connection() as conn:
        assert await _refused(
            conn,
            "insert into jobs (tenant, policy_id, base, spec, request_id, request_hash, lease_until, state)"
            " select tenant, policy_id, base, spec, 'other', request_hash, now(), $1 from jobs",
            state,
        )


async def test_a_fence_never_falls(world: Any, catalog: Catalog) -> None:
    job, revision = await world.running("painter"), await world.exporting("poet")
    async with catalog.connection() as conn:
        assert await _refused(conn, "update jobs set fence = 0 where job_id = $1", job.job_id)
        assert await _refused(conn, "update revisions set fence = 0 where revision_id = $1", revision.revision_id)


async def test_a_digest_once_given_stays(world: Any, catalog: Catalog) -> None:
    revision = await world.exported()
    async with catalog.connection() as conn:
        assert await _refused(
            conn, "update revisions set digest = $2 where revision_id = $1", revision.revision_id, b"x" * 32
        )
        assert await _refused(conn, "update revisions set number = 9 where revision_id = $1", revision.revision_id)


async def _refused(conn: Any, query: str, *arguments: Any) -> bool:
    try:
        async with conn.transaction():
            await conn.execute(query, *arguments)
    except asyncpg.PostgresError as error:
        if error.sqlstate == ILLEGAL:
            return True
        raise
    return False
