"""Jobs: acceptance, claims, leases and ends."""

import math
from uuid import UUID

import asyncpg

from openmint.catalog.bases import find_base
from openmint.catalog.database import Connection
from openmint.catalog.outbox_rows import append
from openmint.catalog.policies import MAX_PAGE, ensure_policy
from openmint.catalog.rows import JOB_COLUMNS, Job, JobState, JsonObject, dump_json, job_from
from openmint.catalog.transitions import MAX_TRIES, move_job
from openmint.errors import Conflict, Fenced, IdempotencyConflict, NotFound
from openmint.events import Cause, JobAccepted, JobCancelled, JobCompleted, JobFailed, JobStarted

CANDIDATES_PER_TENANT = 8
"""How many of a tenant's oldest due jobs one claim looks at; other claims may hold locks on the first of them."""

MAX_CANDIDATES = 64

CLAIM_ROUNDS = 3
"""A claim can lose against another claim on the same policy; after so many losses the caller simply comes again."""

_JOBS = "jobs j join policies p using (policy_id)"

# "Not held" instead of "free or lapsed": so the planner expects that most of what is open is due, and reads each
# tenant's oldest from the index.
_IS_DUE = (
    "j.state in ('accepted', 'running') and (j.state <> 'running'"
    f" or (j.lease_until < clock_timestamp() and j.tries < {MAX_TRIES} and not j.cancel_requested))"
)


async def accept_job(
    conn: Connection,
    *,
    service: str,
    tenant: str,
    policy: str,
    base: str,
    spec: JsonObject,
    idempotency_key: str | None,
    request_hash: bytes,
    request_id: str,
) -> tuple[Job, bool]:
    """Commit a job, with its policy if that is new; returns it, and True when it was made by this call.

    The same idempotency key, or the same request delivered again, gives the job made the first time.
    Raises: IdempotencyConflict, Conflict (policy on another base), NotFound (base), BadName.
    """
    async with conn.transaction():
        known = await _accepted_before(conn, tenant, idempotency_key, request_id, request_hash)
        if known is not None:
            return known, False
        await find_base(conn, base)
        row_policy = await ensure_policy(conn, tenant, policy, base)
        job_id = await conn.fetchval(
            "insert into jobs (tenant, policy_id, base, spec, idempotency_key, request_id, request_hash, steps)"
            " values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict do nothing returning job_id",
            tenant,
            row_policy.policy_id,
            base,
            dump_json(spec),
            idempotency_key,
            request_id,
            request_hash,
            int(spec.get("training", {}).get("steps", 0)),
        )
        if job_id is None:
            known = await _accepted_before(conn, tenant, idempotency_key, request_id, request_hash)
            if known is None:
                raise Conflict("the same request is being accepted at this moment")
            return known, False
        job = await find_job(conn, job_id)
        await append(conn, service, accepted_fact(job))
        return job, True


async def claim_job(conn: Connection, base: str, owner: str, lease_s: float, *, service: str = "trainer") -> Job | None:
    """Take the due job that fairness puts first, or None when nothing is due.

    First comes the tenant with the fewest running jobs per weight, then the oldest job. A policy trains in one job at
    a time. The fence rises, and JobStarted goes out.
    """
    for _ in range(CLAIM_ROUNDS):
        try:
            async with conn.transaction():
                chosen = await _lock_due_job(conn, base)
                if chosen is None:
                    return None
                return await move_job(
                    conn,
                    chosen["job_id"],
                    JobState.RUNNING,
                    service=service,
                    fence=chosen["fence"],
                    fact=started_fact,
                    changes={
                        "fence": chosen["fence"] + 1,
                        "tries": chosen["tries"] + 1,
                        "owner": owner,
                        "started_at": chosen["started_at"] or chosen["now"],
                    },
                    lease_s=lease_s,
                )
        except asyncpg.UniqueViolationError:
            # Another claim started a job of the same policy after our look at it.
            continue
    return None


async def _lock_due_job(conn: Connection, base: str) -> asyncpg.Record | None:
    return await conn.fetchrow(
        f"""
        with held as (
            select tenant, count(*) as under_way from jobs
            where base = $1 and state = 'running' and lease_until >= clock_timestamp() group by tenant
        ), candidates as (
            select due.job_id, shares.share
            from (
                select t.tenant, coalesce(held.under_way, 0) / t.weight as share
                from tenants t left join held using (tenant)
            ) shares
            cross join lateral (
                select j.job_id from jobs j
                where j.base = $1 and j.tenant = shares.tenant and {_IS_DUE}
                    and not exists (
                        select from jobs other
                        where other.policy_id = j.policy_id and other.state = 'running' and other.job_id <> j.job_id
                    )
                order by j.job_id limit {CANDIDATES_PER_TENANT}
            ) due
            order by shares.share, due.job_id limit {MAX_CANDIDATES}
        )
        select j.job_id, j.fence, j.tries, j.started_at, clock_timestamp() as now
        from candidates c join jobs j on j.job_id = c.job_id
        where {_IS_DUE}
        order by c.share, c.job_id limit 1
        for update of j skip locked
        """,
        base,
    )


async def heartbeat_job(
    conn: Connection, job_id: UUID, fence: int, lease_s: float, progress: JsonObject | None = None
) -> bool:
    """Hold the lease for another `lease_s` from now; True when a cancel was asked for.

    Raises: Fenced when the job is no longer this claim's: stop at once and write nothing more.
    """
    row = await conn.fetchrow(
        "update jobs set lease_until = clock_timestamp() + make_interval(secs => $3),"
        " progress = coalesce($4::jsonb, progress)"
        " where job_id = $1 and state = 'running' and (fence = $2 or fencing_is_off())"
        " returning cancel_requested",
        job_id,
        fence,
        lease_s,
        None if progress is None else dump_json(_finite(progress)),
    )
    if row is None:
        raise Fenced(f"job {job_id} is no longer held under fence {fence}")
    return bool(row["cancel_requested"])


async def complete_job(
    conn: Connection,
    job_id: UUID,
    fence: int,
    steps: int,
    tokens: int,
    final_loss: float | None,
    *,
    service: str = "trainer",
) -> Job:
    """End the job as completed. Raises: Fenced, Conflict."""
    loss = final_loss if final_loss is not None and math.isfinite(final_loss) else None
    return await move_job(
        conn,
        job_id,
        JobState.COMPLETED,
        service=service,
        fence=fence,
        fact=lambda job: JobCompleted(
            tenant=job.tenant,
            job_id=job.job_id,
            policy=job.policy,
            base=job.base,
            causation_id=str(job.hint_event_id),
            steps=steps,
            tokens=tokens,
            final_loss=loss,
        ),
        changes={"steps": steps, "tokens": tokens, "final_loss": loss},
    )


async def fail_job(conn: Connection, job_id: UUID, fence: int, cause: Cause, *, service: str = "trainer") -> Job:
    """End the job as failed, for good. Raises: Fenced, Conflict."""
    return await move_job(
        conn,
        job_id,
        JobState.FAILED,
        service=service,
        fence=fence,
        fact=lambda job: JobFailed(
            tenant=job.tenant,
            job_id=job.job_id,
            policy=job.policy,
            base=job.base,
            causation_id=str(job.hint_event_id),
            cause=cause,
        ),
        changes={"cause": cause.model_dump_json()},
    )


async def request_cancel(
    conn: Connection, tenant: str, job_id: UUID, *, cancelled_by: str = "", service: str = "gateway"
) -> Job:
    """Ask for the job to stop. What nobody holds is cancelled at once; a trainer learns it at its next heartbeat.

    Raises: NotFound (also another tenant's), Conflict when the job has ended otherwise.
    """
    async with conn.transaction():
        row = await conn.fetchrow(
            "select state, fence, state = 'running' and lease_until >= clock_timestamp() as is_held from jobs"
            " where job_id = $1 and tenant = $2 for update",
            job_id,
            tenant,
        )
        if row is None:
            raise NotFound(f"there is no job {job_id}")
        if row["state"] == JobState.CANCELLED:
            return await find_job(conn, job_id)
        if JobState(row["state"]).is_ended:
            raise Conflict(f"job {job_id} is {row['state']} already")
        await conn.execute(
            "update jobs set cancel_requested = true, cancelled_by = $2 where job_id = $1", job_id, cancelled_by
        )
        if row["is_held"]:
            return await find_job(conn, job_id)
        return await _cancel(conn, job_id, row["fence"], service)


async def cancel_job(conn: Connection, job_id: UUID, fence: int, *, service: str = "trainer") -> Job:
    """End the job as cancelled, as its holder does after a heartbeat said so. Raises: Fenced, Conflict."""
    return await _cancel(conn, job_id, fence, service)


async def release_job(conn: Connection, job_id: UUID, fence: int) -> None:
    """Give the job back on a graceful stop: claimable at once, no try used up, this fence worth nothing any more.

    Raises: Fenced.
    """
    released = await conn.fetchval(
        "update jobs set lease_until = clock_timestamp() - interval '1 microsecond', owner = null, fence = fence + 1,"
        " tries = greatest(tries - 1, 0), changed_at = clock_timestamp()"
        " where job_id = $1 and fence = $2 and state = 'running' returning true",
        job_id,
        fence,
    )
    if not released:
        raise Fenced(f"job {job_id} is no longer held under fence {fence}")


async def find_job(conn: Connection, job_id: UUID, tenant: str | None = None) -> Job:
    """The job; with `tenant`, only if it is that tenant's. Raises: NotFound."""
    row = await conn.fetchrow(f"select {JOB_COLUMNS} from {_JOBS} where j.job_id = $1", job_id)
    if row is None or (tenant is not None and row["tenant"] != tenant):
        raise NotFound(f"there is no job {job_id}")
    return job_from(row)


async def list_jobs(
    conn: Connection, tenant: str, after: UUID | None = None, limit: int = 100, *, policy_id: UUID | None = None
) -> list[Job]:
    """A page of the tenant's jobs, newest first; `after` is the last id of the page before."""
    if policy_id is None:
        rows = await conn.fetch(
            f"select {JOB_COLUMNS} from {_JOBS} where j.tenant = $1 and ($2::uuid is null or j.job_id < $2)"
            " order by j.job_id desc limit $3",
            tenant,
            after,
            min(limit, MAX_PAGE),
        )
    else:
        rows = await conn.fetch(
            f"select {JOB_COLUMNS} from {_JOBS} where j.policy_id = $4 and j.tenant = $1"
            " and ($2::uuid is null or j.job_id < $2) order by j.job_id desc limit $3",
            tenant,
            after,
            min(limit, MAX_PAGE),
            policy_id,
        )
    return [job_from(row) for row in rows]


def accepted_fact(job: Job) -> JobAccepted:
    """The fact of the job's acceptance; the same one whenever it is told."""
    return JobAccepted(
        event_id=job.hint_event_id,
        occurred_at=job.created_at,
        causation_id=job.request_id,
        tenant=job.tenant,
        job_id=job.job_id,
        policy=job.policy,
        base=job.base,
        recipe=str(job.spec.get("recipe", "sft")),
        idempotency_key=job.idempotency_key,
    )


def started_fact(job: Job) -> JobStarted:
    """The fact of the claim that the job is under now."""
    return JobStarted(
        tenant=job.tenant,
        job_id=job.job_id,
        policy=job.policy,
        base=job.base,
        fence=job.fence,
        resumed_from_step=job.step,
        causation_id=str(job.hint_event_id),
    )


async def _cancel(conn: Connection, job_id: UUID, fence: int, service: str) -> Job:
    return await move_job(
        conn,
        job_id,
        JobState.CANCELLED,
        service=service,
        fence=fence,
        fact=lambda job: JobCancelled(
            tenant=job.tenant,
            job_id=job.job_id,
            policy=job.policy,
            base=job.base,
            causation_id=str(job.hint_event_id),
            cancelled_by=job.cancelled_by,
        ),
    )


async def _accepted_before(
    conn: Connection, tenant: str, idempotency_key: str | None, request_id: str, request_hash: bytes
) -> Job | None:
    if idempotency_key is not None:
        row = await conn.fetchrow(
            f"select {JOB_COLUMNS} from {_JOBS} where j.tenant = $1 and j.idempotency_key = $2", tenant, idempotency_key
        )
        if row is not None:
            if row["request_hash"] != request_hash:
                raise IdempotencyConflict(
                    f"idempotency key {idempotency_key[:80]!r} was used before for another request",
                    field="idempotency_key",
                )
            return job_from(row)
    row = await conn.fetchrow(
        f"select {JOB_COLUMNS} from {_JOBS} where j.tenant = $1 and j.request_id = $2 and j.request_hash = $3",
        tenant,
        request_id,
        request_hash,
    )
    return None if row is None else job_from(row)


def _finite(progress: JsonObject) -> JsonObject:
    """A loss that is not a number is told as null, which JSON can hold."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in progress.items()
    }
