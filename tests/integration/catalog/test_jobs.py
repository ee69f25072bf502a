import json
from typing import Any
from uuid import uuid4

import pytest

from openmint.catalog import Catalog, checkpoints, expiry, jobs
from openmint.catalog.rows import JobState
from openmint.catalog.transitions import MAX_TRIES
from openmint.errors import Conflict, Fenced, IdempotencyConflict, NotFound
from openmint.events import Cause

CAUSE = Cause(code="bad_dataset", detail="row 3 has no completion", fault="user")


def _request(**changes: Any) -> dict[str, Any]:
    return {
        "service": "gateway",
        "tenant": "acme",
        "policy": "poet",
        "base": "tiny",
        "spec": {"recipe": "sft", "training": {"steps": 10}},
        "idempotency_key": "key-1",
        "request_hash": bytes(32),
        "request_id": "request-a",
    } | changes


async def test_an_accepted_job_has_its_policy_and_its_fact(world: Any, catalog: Catalog) -> None:
    async with catalog.transaction() as conn:
        job, created = await jobs.accept_job(conn, **_request())
        row = await conn.fetchrow("select service, event_id, subject, headers, payload from outbox")
    assert created
    assert (job.state, job.policy, job.steps, job.fence) == (JobState.ACCEPTED, "poet", 10, 0)
    assert row is not None
    body, headers = json.loads(row["payload"]), json.loads(row["headers"])
    assert row["service"] == "gateway"
    assert row["subject"] == f"openmint.job.accepted.v1.acme.{job.job_id}"
    assert body["event_id"] == headers["ce-id"] == headers["Nats-Msg-Id"] == str(row["event_id"])
    assert body["causation_id"] == "request-a"


async def test_nothing_is_accepted_and_nothing_told_when_the_transaction_fails(world: Any, catalog: Catalog) -> None:
    with pytest.raises(RuntimeError):
        async with catalog.transaction() as conn:
            await jobs.accept_job(conn, **_request())
            raise RuntimeError
    async with catalog.connection() as conn:
        assert await conn.fetchval("select count(*) from jobs") == 0
        assert await conn.fetchval("select count(*) from outbox") == 0


async def test_same_key_and_content_give_the_first_job(world: Any, catalog: Catalog) -> None:
    async with catalog.transaction() as conn:
        first, _ = await jobs.accept_job(conn, **_request())
        second, created = await jobs.accept_job(conn, **_request(request_id="request-b"))
    assert (second.job_id, created) == (first.job_id, False)
    assert await world.subjects() == ["job.accepted"]


async def test_same_key_and_other_content_are_refused(world: Any, catalog: Catalog) -> None:
    async with catalog.transaction() as conn:
        await jobs.accept_job(conn, **_request())
        with pytest.raises(IdempotencyConflict, match="key-1"):
            await jobs.accept_job(conn, **_request(request_hash=b"x" * 32))


async def test_same_key_of_two_tenants_makes_two_jobs(world: Any, catalog: Catalog) -> None:
    async with catalog.transaction() as conn:
        first, _ = await jobs.accept_job(conn, **_request())
        second, created = await jobs.accept_job(conn, **_request(tenant="rival"))
    assert created
    assert first.job_id != second.job_id


async def test_a_message_delivered_twice_makes_one_job_without_any_key(world: Any, catalog: Catalog) -> None:
    async with catalog.transaction() as conn:
        first, _ = await jobs.accept_job(conn, **_request(idempotency_key=None, request_id="JOBS-1"))
        again, created = await jobs.accept_job(conn, **_request(idempotency_key=None, request_id="JOBS-1"))
        assert (again.job_id, created) == (first.job_id, False)
        # A bus that was lost and made anew counts from 1 again; another body is another request.
        other, created = await jobs.accept_job(
            conn, **_request(idempotency_key=None, request_id="JOBS-1", request_hash=b"y" * 32)
        )
    assert created
    assert other.job_id != first.job_id


async def test_unknown_base_is_named(world: Any, catalog: Catalog) -> None:
    async with catalog.transaction() as conn:
        with pytest.raises(NotFound, match="'huge'"):
            await jobs.accept_job(conn, **_request(base="huge"))


async def test_policy_on_another_base_is_a_conflict(world: Any, catalog: Catalog) -> None:
    async with catalog.transaction() as conn:
        await conn.execute("insert into base_models select 'other', digest, locator, modules, config from base_models")
        await jobs.accept_job(conn, **_request())
        with pytest.raises(Conflict, match="acme/poet is on base model 'tiny'"):
            await jobs.accept_job(conn, **_request(base="other", idempotency_key="key-2", request_id="request-b"))


async def test_a_claim_raises_the_fence_and_tells_where_it_resumes(world: Any, catalog: Catalog) -> None:
    job = await world.running()
    assert (job.state, job.fence, job.tries, job.owner) == (JobState.RUNNING, 1, 1, "trainer-1")
    await world.checkpoint(job, step=5)
    await world.lapse_job(job.job_id)
    second = await world.claim("trainer-2")
    assert (second.job_id, second.fence, second.tries, second.step) == (job.job_id, 2, 1, 5)
    async with catalog.connection() as conn:
        body = await conn.fetchval("select payload from outbox where subject like '%job.started%' order by id desc")
        checkpoint = await checkpoints.latest_checkpoint(conn, job.job_id)
    assert json.loads(body)["resumed_from_step"] == 5
    assert checkpoint is not None
    assert checkpoint.step == 5


async def test_a_heartbeat_holds_the_lease_and_keeps_progress(world: Any, catalog: Catalog) -> None:
    job = await world.running()
    async with catalog.connection() as conn:
        assert not await jobs.heartbeat_job(conn, job.job_id, job.fence, 500, {"step": 3, "loss": float("nan")})
        seen = await jobs.find_job(conn, job.job_id)
        assert seen.lease_until is not None and job.lease_until is not None
        assert (seen.lease_until - job.lease_until).total_seconds() > 400
        assert seen.progress == {"step": 3, "loss": None}
        await jobs.heartbeat_job(conn, job.job_id, job.fence, 500)
        assert (await jobs.find_job(conn, job.job_id)).progress == seen.progress
    assert await world.subjects() == ["job.accepted", "job.started"]


async def test_a_zombie_can_write_nothing(world: Any, catalog: Catalog) -> None:
    zombie = await world.running()
    await world.lapse_job(zombie.job_id)
    holder = await world.claim("trainer-2")
    before = await world.subjects()
    async with catalog.connection() as conn:
        with pytest.raises(Fenced):
            await jobs.heartbeat_job(conn, zombie.job_id, zombie.fence, 60)
        with pytest.raises(Fenced):
            await checkpoints.commit_checkpoint(conn, zombie.job_id, zombie.fence, 7, "k", bytes(32), 1, True)
        with pytest.raises(Fenced):
            await jobs.complete_job(conn, zombie.job_id, zombie.fence, 10, 1, 0.1)
        with pytest.raises(Fenced):
            await jobs.fail_job(conn, zombie.job_id, zombie.fence, CAUSE)
        with pytest.raises(Fenced):
            await jobs.cancel_job(conn, zombie.job_id, zombie.fence)
        with pytest.raises(Fenced):
            await jobs.release_job(conn, zombie.job_id, zombie.fence)
        assert await jobs.find_job(conn, zombie.job_id) == holder
        assert await conn.fetchval("select count(*) from checkpoints") == 0
    assert await world.subjects() == before


async def test_a_lease_that_ran_out_may_be_taken_up_again_by_its_holder(world: Any, catalog: Catalog) -> None:
    job = await world.running()
    await world.lapse_job(job.job_id)
    async with catalog.connection() as conn:
        await jobs.heartbeat_job(conn, job.job_id, job.fence, 60)
        assert await jobs.claim_job(conn, "tiny", "trainer-2", 60) is None


async def test_complete_told_twice_tells_once(world: Any, catalog: Catalog) -> None:
    job = await world.running()
    async with catalog.connection() as conn:
        first = await jobs.complete_job(conn, job.job_id, job.fence, 10, 640, 0.25)
        assert await jobs.complete_job(conn, job.job_id, job.fence, 10, 640, 0.25) == first
        with pytest.raises(Conflict):
            await jobs.fail_job(conn, job.job_id, job.fence, CAUSE)
    assert (first.state, first.tokens, first.final_loss, first.lease_until) == (JobState.COMPLETED, 640, 0.25, None)
    assert await world.subjects() == ["job.accepted", "job.started", "job.completed"]


async def test_a_failed_job_keeps_its_cause(world: Any, catalog: Catalog) -> None:
    job = await world.running()
    async with catalog.connection() as conn:
        failed = await jobs.fail_job(conn, job.job_id, job.fence, CAUSE)
    assert (failed.state, failed.cause) == (JobState.FAILED, CAUSE)
    assert (await world.subjects())[-1] == "job.failed"


async def test_an_accepted_job_is_cancelled_at_once(world: Any, catalog: Catalog) -> None:
    job = await world.accept()
    async with catalog.connection() as conn:
        cancelled = await jobs.request_cancel(conn, "acme", job.job_id, cancelled_by="ann")
        assert await jobs.request_cancel(conn, "acme", job.job_id) == cancelled
        assert await jobs.claim_job(conn, "tiny", "trainer-1", 60) is None
    assert (cancelled.state, cancelled.cancelled_by) == (JobState.CANCELLED, "ann")
    assert await world.subjects() == ["job.accepted", "job.cancelled"]


async def test_a_running_job_learns_of_the_cancel_at_its_heartbeat(world: Any, catalog: Catalog) -> None:
    job = await world.running()
    async with catalog.connection() as conn:
        assert (await jobs.request_cancel(conn, "acme", job.job_id)).state is JobState.RUNNING
        assert await jobs.heartbeat_job(conn, job.job_id, job.fence, 60)
        assert (await jobs.cancel_job(conn, job.job_id, job.fence)).state is JobState.CANCELLED


async def test_the_cancel_of_a_job_whose_trainer_died_needs_no_trainer(world: Any, catalog: Catalog) -> None:
    job = await world.running()
    async with catalog.transaction() as conn:
        await jobs.request_cancel(conn, "acme", job.job_id)
    await world.lapse_job(job.job_id)
    async with catalog.transaction() as conn:
        assert await jobs.claim_job(conn, "tiny", "trainer-2", 60) is None
        ended = await expiry.end_exhausted_jobs(conn, "keeper")
    assert [(end.job_id, end.state) for end in ended] == [(job.job_id, JobState.CANCELLED)]


async def test_an_ended_job_cannot_be_cancelled(world: Any, catalog: Catalog) -> None:
    job = await world.running()
    async with catalog.connection() as conn:
        await jobs.complete_job(conn, job.job_id, job.fence, 10, 1, None)
        with pytest.raises(Conflict, match="completed already"):
            await jobs.request_cancel(conn, "acme", job.job_id)


async def test_a_released_job_is_claimable_at_once_and_costs_no_try(world: Any, catalog: Catalog) -> None:
    job = await world.running()
    async with catalog.connection() as conn:
        await jobs.release_job(conn, job.job_id, job.fence)
        with pytest.raises(Fenced):
            await jobs.heartbeat_job(conn, job.job_id, job.fence, 60)
    again = await world.claim("trainer-2")
    assert (again.job_id, again.tries) == (job.job_id, 1)
    assert again.fence > job.fence


async def test_a_job_whose_tries_are_used_up_fails_as_the_servers_fault(world: Any, catalog: Catalog) -> None:
    job = await world.accept()
    for _ in range(MAX_TRIES):
        claimed = await world.claim()
        await world.lapse_job(job.job_id)
    assert claimed.tries == MAX_TRIES
    async with catalog.transaction() as conn:
        assert await jobs.claim_job(conn, "tiny", "trainer-1", 60) is None
        ended = await expiry.end_exhausted_jobs(conn, "keeper")
        assert await expiry.end_exhausted_jobs(conn, "keeper") == []
    assert [end.state for end in ended] == [JobState.FAILED]
    assert ended[0].cause is not None
    assert (ended[0].cause.fault, ended[0].cause.code) == ("server", "tries_used_up")
    assert (await world.subjects())[-1] == "job.failed"


async def test_another_tenants_job_is_not_found(world: Any, catalog: Catalog) -> None:
    job = await world.accept(tenant="rival")
    async with catalog.connection() as conn:
        with pytest.raises(NotFound):
            await jobs.find_job(conn, job.job_id, "acme")
        with pytest.raises(NotFound):
            await jobs.request_cancel(conn, "acme", job.job_id)
        with pytest.raises(NotFound):
            await jobs.find_job(conn, uuid4())
        assert await jobs.list_jobs(conn, "acme") == []


async def test_jobs_are_listed_newest_first_in_pages(world: Any, catalog: Catalog) -> None:
    made = [await world.accept(f"poet-{number}") for number in range(5)]
    async with catalog.connection() as conn:
        first = await jobs.list_jobs(conn, "acme", limit=3)
        rest = await jobs.list_jobs(conn, "acme", after=first[-1].job_id, limit=3)
        of_policy = await jobs.list_jobs(conn, "acme", policy_id=made[2].policy_id)
    assert [job.job_id for job in first + rest] == [job.job_id for job in reversed(made)]
    assert [job.job_id for job in of_policy] == [made[2].job_id]
