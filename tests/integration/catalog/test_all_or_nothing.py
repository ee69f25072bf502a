"""Each step of a policy's life, broken at every query in turn: either all of it is there, or nothing."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from openmint.catalog import Catalog, aliases, checkpoints, expiry, jobs, revisions
from openmint.catalog.rows import EvaluationDraft
from openmint.catalog.transitions import MAX_TRIES
from openmint.events import Cause
from openmint.identifiers import new_id

Step = Callable[[Any], Awaitable[Any]]
QUERIES = frozenset({"fetch", "fetchrow", "fetchval", "execute", "executemany"})
CAUSE = Cause(code="broken", detail="on purpose", fault="server")


class Broken(Exception):
    """The process died here."""


class BreakingConnection:
    """A real connection whose nth query raises before it is sent."""

    def __init__(self, connection: Any, breaks_at: int) -> None:
        self._connection = connection
        self._breaks_at = breaks_at
        self._queries = 0

    def __getattr__(self, name: str) -> Any:
        if name in QUERIES:
            self._queries += 1
            if self._queries == self._breaks_at:
                raise Broken
        return getattr(self._connection, name)


async def _everything(catalog: Catalog) -> list[Any]:
    async with catalog.connection() as conn:
        seen: list[Any] = []
        for table in (
            "policies",
            "jobs",
            "checkpoints",
            "revisions",
            "aliases",
            "alias_history",
            "evaluations",
            "outbox",
        ):
            seen.extend(await conn.fetch(f"select {table}::text from {table} order by 1"))
        return seen


async def break_everywhere(catalog: Catalog, step: Step) -> int:
    """Break `step` at its first query, its second and so on, then let it pass; returns at how many it was broken."""
    before = await _everything(catalog)
    breaks_at = 1
    while True:
        async with catalog.connection() as conn:
            try:
                await step(BreakingConnection(conn, breaks_at))
                break
            except Broken:
                assert await _everything(catalog) == before, f"broken at query {breaks_at}"
                breaks_at += 1
    assert await _everything(catalog) != before
    return breaks_at - 1


async def test_acceptance(world: Any, catalog: Catalog) -> None:
    def accept(conn: Any) -> Awaitable[Any]:
        return jobs.accept_job(
            conn,
            service="gateway",
            tenant="acme",
            policy="poet",
            base="tiny",
            spec={},
            idempotency_key="key",
            request_hash=bytes(32),
            request_id="request",
        )

    assert await break_everywhere(catalog, accept) >= 5


async def test_a_jobs_steps(world: Any, catalog: Catalog) -> None:
    await world.accept()
    assert await break_everywhere(catalog, lambda conn: jobs.claim_job(conn, "tiny", "trainer", 60)) >= 3
    async with catalog.connection() as conn:
        (job,) = await jobs.list_jobs(conn, "acme")
    assert (
        await break_everywhere(
            catalog,
            lambda conn: checkpoints.commit_checkpoint(conn, job.job_id, job.fence, 1, "k", bytes(32), 1, True),
        )
        >= 5
    )
    assert await break_everywhere(catalog, lambda conn: jobs.complete_job(conn, job.job_id, job.fence, 1, 1, 0.1)) >= 2


async def test_a_revisions_steps(world: Any, catalog: Catalog) -> None:
    held = await world.exporting()
    fence, key, digest = held.fence, held.revision_id, world.new_digest()
    assert (
        await break_everywhere(
            catalog, lambda conn: revisions.commit_export(conn, key, fence, digest, {"rank": 8}, 1, 1.0)
        )
        >= 4
    )
    await break_everywhere(catalog, lambda conn: revisions.claim_evaluation(conn, "evaluator", 60))
    draft = EvaluationDraft(new_id(), "parity", True, "", {}, {})
    assert (
        await break_everywhere(
            catalog, lambda conn: revisions.record_verdict(conn, key, fence + 1, True, "fine", [draft])
        )
        >= 3
    )
    assert (
        await break_everywhere(
            catalog,
            lambda conn: aliases.move_alias(
                conn,
                service="gateway",
                policy_id=held.policy_id,
                alias="production",
                revision_id=key,
                expected_version=0,
                actor="ann",
                reason="",
            ),
        )
        >= 4
    )
    await break_everywhere(catalog, lambda conn: revisions.quarantine(conn, key, "bad", "scheduler"))
    await break_everywhere(catalog, lambda conn: revisions.release_quarantine(conn, key, "ann"))


@pytest.mark.parametrize("what", ["job", "export", "cancel"])
async def test_ends_without_success(world: Any, catalog: Catalog, what: str) -> None:
    if what == "export":
        revision = await world.exporting()
        await break_everywhere(
            catalog, lambda conn: revisions.fail_export(conn, revision.revision_id, revision.fence, CAUSE)
        )
        return
    job = await world.running() if what == "job" else await world.accept()
    if what == "job":
        await break_everywhere(catalog, lambda conn: jobs.fail_job(conn, job.job_id, job.fence, CAUSE))
    else:
        await break_everywhere(catalog, lambda conn: jobs.request_cancel(conn, "acme", job.job_id))


async def test_the_keepers_ends(world: Any, catalog: Catalog) -> None:
    job = await world.running()
    async with catalog.connection() as conn:
        await conn.execute("update jobs set tries = $1", MAX_TRIES)
    await world.lapse_job(job.job_id)

    async def end(conn: Any) -> None:
        async with conn.transaction():
            await expiry.end_exhausted_jobs(conn, "keeper")

    assert await break_everywhere(catalog, end) >= 3
