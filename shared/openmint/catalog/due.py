"""Steps that are due and held by nobody. The keeper tells their facts again; every worker also looks by itself."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from openmint.catalog.checkpoints import find_checkpoint, saved_fact
from openmint.catalog.database import Connection
from openmint.catalog.jobs import accepted_fact, find_job
from openmint.catalog.outbox_rows import append_again
from openmint.catalog.revisions import exported_fact, find_revision
from openmint.catalog.transitions import MAX_TRIES
from openmint.events import Fact

Stage = Literal["train", "export", "evaluate"]


@dataclass(frozen=True, slots=True)
class DueStep:
    """Work that waits. `subject_id` is a job's id for stage train, a revision's otherwise."""

    stage: Stage
    subject_id: UUID
    tenant: str
    base: str
    due_since: datetime


async def due_steps(conn: Connection, older_than_s: float = 0.0, limit: int = 500) -> list[DueStep]:
    """What has been due, and untold of, for `older_than_s`; oldest first."""
    rows = await conn.fetch(
        f"""
        select * from (
            select 'train' as stage, j.job_id as subject_id, j.tenant, j.base,
                coalesce(j.lease_until, j.created_at) as due_since
            from jobs j
            where j.state in ('accepted', 'running')
                and j.announced_at < clock_timestamp() - make_interval(secs => $1)
                and coalesce(j.lease_until, j.created_at) < clock_timestamp() - make_interval(secs => $1)
                and (j.state = 'accepted' or (j.tries < {MAX_TRIES} and not j.cancel_requested))
                and not exists (
                    select from jobs other where other.policy_id = j.policy_id and other.state = 'running'
                        and other.job_id <> j.job_id
                )
            union all
            select 'export', r.revision_id, r.tenant, r.base, coalesce(r.lease_until, r.changed_at)
            from revisions r
            where r.state in ('pending', 'exporting') and r.checkpoint_id is not null
                and r.announced_at < clock_timestamp() - make_interval(secs => $1)
                and coalesce(r.lease_until, r.changed_at) < clock_timestamp() - make_interval(secs => $1)
                and (r.state = 'pending' or r.tries < {MAX_TRIES})
            union all
            select 'evaluate', r.revision_id, r.tenant, r.base, coalesce(r.lease_until, r.changed_at)
            from revisions r
            where r.state in ('exported', 'evaluating')
                and r.announced_at < clock_timestamp() - make_interval(secs => $1)
                and coalesce(r.lease_until, r.changed_at) < clock_timestamp() - make_interval(secs => $1)
                and (r.state = 'exported' or r.tries < {MAX_TRIES})
        ) steps order by due_since limit $2
        """,
        older_than_s,
        limit,
    )
    return [DueStep(**row) for row in rows]


async def hint_of(conn: Connection, step: DueStep) -> Fact:
    """The fact that first told of this step, the same to its id."""
    if step.stage == "train":
        return accepted_fact(await find_job(conn, step.subject_id))
    revision = await find_revision(conn, step.subject_id)
    if step.stage == "evaluate":
        return exported_fact(revision)
    assert revision.checkpoint_id is not None
    checkpoint = await find_checkpoint(conn, revision.checkpoint_id)
    return saved_fact(await find_job(conn, checkpoint.job_id), checkpoint, revision.revision_id)


async def announce_again(conn: Connection, step: DueStep, service: str) -> Fact:
    """Have the step's fact published once more, and note that it was."""
    async with conn.transaction():
        fact = await hint_of(conn, step)
        await append_again(conn, service, fact)
        table, column = ("jobs", "job_id") if step.stage == "train" else ("revisions", "revision_id")
        await conn.execute(f"update {table} set announced_at = clock_timestamp() where {column} = $1", step.subject_id)
        return fact
