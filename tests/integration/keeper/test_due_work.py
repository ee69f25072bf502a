import json
from typing import Any

import pytest

from openmint.catalog import Catalog, jobs, outbox_rows, revisions
from openmint.catalog.due import due_steps
from openmint.catalog.rows import JobState, RevisionState
from openmint.catalog.transitions import MAX_TRIES
from openmint.identifiers import digest_from_hex, new_id
from openmint_keeper import due_work

DIGEST = digest_from_hex("1" * 64)


async def _told_by_keeper(catalog: Catalog) -> list[Any]:
    async with catalog.connection() as conn:
        return await conn.fetch("select event_id, subject, headers, payload from outbox where service = 'keeper'")


async def test_an_accepted_job_that_nobody_holds_is_told_again(tenancy: Any, catalog: Catalog) -> None:
    job = await tenancy.accept()
    async with catalog.connection() as conn:
        first = await conn.fetchrow("select event_id, subject, headers, payload from outbox")
    assert await due_work.announce_due_steps(catalog, 0) == 1
    (again,) = await _told_by_keeper(catalog)
    assert (again["event_id"], again["subject"], again["payload"]) == (
        first["event_id"],
        first["subject"],
        first["payload"],
    )
    before, after = json.loads(first["headers"]), json.loads(again["headers"])
    assert after["ce-id"] == before["ce-id"] == str(job.hint_event_id)
    assert after["Nats-Msg-Id"] != before["Nats-Msg-Id"]


async def test_what_was_just_told_or_is_held_is_not_told_again(tenancy: Any, catalog: Catalog) -> None:
    await tenancy.running()
    await tenancy.accept()
    assert await due_work.announce_due_steps(catalog, 3600) == 0
    assert await due_work.announce_due_steps(catalog, 0) == 1
    assert await due_work.announce_due_steps(catalog, 3600) == 0
    assert len(await _told_by_keeper(catalog)) == 1


async def test_each_stage_has_its_hint(tenancy: Any, catalog: Catalog) -> None:
    exported = await tenancy.exported(DIGEST)
    pending = await tenancy.pending()
    job = await tenancy.running()
    await tenancy.lapse("jobs", job.job_id)
    assert await due_work.announce_due_steps(catalog, 0) == 3
    told = {json.loads(row["payload"])["event_id"]: row["subject"] for row in await _told_by_keeper(catalog)}
    async with catalog.connection() as conn:
        checkpoint_hint = await conn.fetchval(
            "select hint_event_id from checkpoints where checkpoint_id = $1", pending.checkpoint_id
        )
    assert told == {
        str(job.hint_event_id): f"openmint.job.accepted.v1.acme.{job.job_id}",
        str(checkpoint_hint): f"openmint.checkpoint.saved.v1.acme.{pending.checkpoint_id}",
        str(exported.hint_event_id): f"openmint.revision.exported.v1.acme.{exported.revision_id}",
    }


async def test_a_lapsed_lease_is_due_again(tenancy: Any, catalog: Catalog) -> None:
    pending = await tenancy.pending()
    async with catalog.connection() as conn:
        await revisions.claim_export(conn, "exporter-1", 60, pending.revision_id)
        assert await due_steps(conn) == []
    await tenancy.lapse("revisions", pending.revision_id)
    async with catalog.connection() as conn:
        assert [step.stage for step in await due_steps(conn)] == ["export"]


async def test_a_job_that_waits_for_its_policys_other_job_is_not_due(tenancy: Any, catalog: Catalog) -> None:
    running = await tenancy.running()
    async with catalog.transaction() as conn:
        await jobs.accept_job(
            conn,
            service="gateway",
            tenant="acme",
            policy=running.policy,
            base="tiny",
            spec={},
            idempotency_key=None,
            request_hash=bytes(32),
            request_id="the-second",
        )
        assert await due_steps(conn) == []


async def test_what_nobody_living_can_end_is_ended(tenancy: Any, catalog: Catalog) -> None:
    pending = await tenancy.pending()
    exhausted, cancelled = await tenancy.running(), await tenancy.running()
    await tenancy.execute("update jobs set tries = $2 where job_id = $1", exhausted.job_id, MAX_TRIES)
    async with catalog.connection() as conn:
        await jobs.request_cancel(conn, "acme", cancelled.job_id)
    assert await due_work.end_exhausted(catalog) == 0
    for job in (exhausted, cancelled):
        await tenancy.lapse("jobs", job.job_id)
    async with catalog.connection() as conn:
        await revisions.claim_export(conn, "exporter-1", 60, pending.revision_id)
    await tenancy.execute("update revisions set tries = $1", MAX_TRIES)
    await tenancy.lapse("revisions", pending.revision_id)
    assert await due_work.end_exhausted(catalog) == 3
    assert await due_work.end_exhausted(catalog) == 0
    async with catalog.connection() as conn:
        assert (await jobs.find_job(conn, exhausted.job_id)).state is JobState.FAILED
        assert (await jobs.find_job(conn, cancelled.job_id)).state is JobState.CANCELLED
        assert (await revisions.find_revision(conn, pending.revision_id)).state is RevisionState.FAILED


async def test_a_stuck_outbox_is_seen(tenancy: Any, catalog: Catalog) -> None:
    assert await due_work.watch_outbox(catalog, 30) == 0
    await tenancy.accept()
    await tenancy.running()
    await tenancy.execute("update outbox set created_at = created_at - interval '1 min' where service = 'trainer'")
    assert await due_work.watch_outbox(catalog, 30) == pytest.approx(60, abs=30)
    async with catalog.connection() as conn:
        waits = await outbox_rows.oldest_unsent_by_service(conn)
    assert sorted(waits) == ["gateway", "trainer"]
    assert waits["gateway"] < 30 < waits["trainer"]


async def test_the_inbox_forgets_what_no_stream_can_deliver_again(tenancy: Any, catalog: Catalog) -> None:
    async with catalog.transaction() as conn:
        await outbox_rows.first_time(conn, "exporter", new_id())
    assert await due_work.prune_inbox(catalog, 3600) == 0
    assert await due_work.prune_inbox(catalog, 0) == 1
