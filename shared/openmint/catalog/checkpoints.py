"""Checkpoints: complete files in the store, named by a row."""

from uuid import UUID

from openmint.catalog.database import Connection, value_of
from openmint.catalog.jobs import find_job
from openmint.catalog.outbox_rows import append
from openmint.catalog.revisions import find_revision
from openmint.catalog.rows import Checkpoint, Job, Revision
from openmint.errors import Fenced, NotFound
from openmint.events import CheckpointSaved

_COLUMNS = "checkpoint_id, job_id, fence, step, key, sha256, checkpoint_bytes, hint_event_id, created_at"


async def commit_checkpoint(
    conn: Connection,
    job_id: UUID,
    fence: int,
    step: int,
    key: str,
    sha256: bytes,
    checkpoint_bytes: int,
    want_revision: bool,
    *,
    service: str = "trainer",
) -> tuple[Checkpoint, Revision | None]:
    """Name a file that is complete in the store as the job's checkpoint, and want a revision of it if told so.

    Progress gives the job its tries back. A repeated call for the same step answers with what is there.
    Raises: Fenced, NotFound.
    """
    async with conn.transaction():
        held = await conn.fetchval(
            "update jobs set tries = case when step < $3 then 0 else tries end, step = greatest(step, $3)"
            " where job_id = $1 and ((fence = $2 and state = 'running') or fencing_is_off()) returning true",
            job_id,
            fence,
            step,
        )
        job = await find_job(conn, job_id)
        if not held:
            raise Fenced(f"job {job_id} is {job.state} under fence {job.fence}, not running under {fence}")
        row = await conn.fetchrow(
            "insert into checkpoints (job_id, fence, step, key, sha256, checkpoint_bytes)"
            " values ($1, $2, $3, $4, $5, $6)"
            " on conflict (job_id, step) do update set fence = excluded.fence, key = excluded.key,"
            " sha256 = excluded.sha256, checkpoint_bytes = excluded.checkpoint_bytes where fencing_is_off()"
            f" returning {_COLUMNS}",
            job_id,
            fence,
            step,
            key,
            sha256,
            checkpoint_bytes,
        )
        is_new = row is not None
        if row is None:
            row = await conn.fetchrow(
                f"select {_COLUMNS} from checkpoints where job_id = $1 and step = $2", job_id, step
            )
            assert row is not None
        checkpoint = Checkpoint(**row)
        revision, revision_is_new = await _wanted_revision(conn, job, checkpoint) if want_revision else (None, False)
        if is_new or revision_is_new:
            await append(conn, service, saved_fact(job, checkpoint, None if revision is None else revision.revision_id))
        return checkpoint, revision


async def latest_checkpoint(conn: Connection, job_id: UUID) -> Checkpoint | None:
    """Where to resume the job, or None for a fresh start."""
    row = await conn.fetchrow(
        f"select {_COLUMNS} from checkpoints where job_id = $1 and not files_gone order by step desc limit 1", job_id
    )
    return None if row is None else Checkpoint(**row)


async def find_checkpoint(conn: Connection, checkpoint_id: UUID) -> Checkpoint:
    """Raises: NotFound."""
    row = await conn.fetchrow(f"select {_COLUMNS} from checkpoints where checkpoint_id = $1", checkpoint_id)
    if row is None:
        raise NotFound(f"there is no checkpoint {checkpoint_id}")
    return Checkpoint(**row)


async def superseded_checkpoints(conn: Connection, ended_before_s: float, limit: int = 200) -> list[Checkpoint]:
    """Checkpoints of ended jobs whose files may go: all but a job's last, and none that an export still needs."""
    rows = await conn.fetch(
        f"""
        select {_COLUMNS} from checkpoints c
        where not c.files_gone
            and exists (select from jobs j where j.job_id = c.job_id and j.state in ('completed', 'failed', 'cancelled')
                and j.changed_at < clock_timestamp() - make_interval(secs => $1))
            and exists (select from checkpoints later where later.job_id = c.job_id and later.step > c.step)
            and not exists (select from revisions r where r.checkpoint_id = c.checkpoint_id
                and r.state in ('pending', 'exporting'))
        order by c.checkpoint_id limit $2
        """,
        ended_before_s,
        limit,
    )
    return [Checkpoint(**row) for row in rows]


async def mark_files_gone(conn: Connection, checkpoint_id: UUID) -> None:
    """The checkpoint's row stays as lineage; its file is deleted after this commits."""
    await conn.execute("update checkpoints set files_gone = true where checkpoint_id = $1", checkpoint_id)


def saved_fact(job: Job, checkpoint: Checkpoint, revision_id: UUID | None) -> CheckpointSaved:
    """The fact of the checkpoint; the same one whenever it is told."""
    return CheckpointSaved(
        event_id=checkpoint.hint_event_id,
        occurred_at=checkpoint.created_at,
        causation_id=str(job.hint_event_id),
        tenant=job.tenant,
        checkpoint_id=checkpoint.checkpoint_id,
        job_id=job.job_id,
        policy=job.policy,
        base=job.base,
        step=checkpoint.step,
        checkpoint_bytes=checkpoint.checkpoint_bytes,
        revision_id=revision_id,
    )


async def _wanted_revision(conn: Connection, job: Job, checkpoint: Checkpoint) -> tuple[Revision, bool]:
    inserted = await conn.fetchval(
        "insert into revisions (tenant, policy_id, base, job_id, checkpoint_id, step, state)"
        " values ($1, $2, $3, $4, $5, $6, 'pending') on conflict (job_id, step) where job_id is not null do nothing"
        " returning revision_id",
        job.tenant,
        job.policy_id,
        job.base,
        job.job_id,
        checkpoint.checkpoint_id,
        checkpoint.step,
    )
    if inserted is not None:
        return await find_revision(conn, inserted), True
    present: UUID = await value_of(
        conn, "select revision_id from revisions where job_id = $1 and step = $2", job.job_id, checkpoint.step
    )
    return await find_revision(conn, present), False
