"""The ends that nobody living can write: leases that ran out with no try left, cancels whose holder is gone."""

from uuid import UUID

from openmint.catalog.database import Connection
from openmint.catalog.jobs import cancel_job, fail_job
from openmint.catalog.revisions import fail_export, rejected_fact
from openmint.catalog.rows import Job, Revision, RevisionState
from openmint.catalog.transitions import MAX_TRIES, move_revision
from openmint.events import Cause

BATCH = 100


async def end_exhausted_jobs(conn: Connection, service: str) -> list[Job]:
    """Cancel running jobs whose holder is gone and whose cancel was asked for; fail those with no try left.

    Call it in a transaction: the rows stay locked, so no holder comes back in between.
    """
    rows = await conn.fetch(
        "select job_id, fence, tries, cancel_requested from jobs where state = 'running'"
        f" and lease_until < clock_timestamp() and (cancel_requested or tries >= {MAX_TRIES})"
        " order by job_id limit $1 for update skip locked",
        BATCH,
    )
    ended: list[Job] = []
    for row in rows:
        job_id, fence = row["job_id"], row["fence"]
        if row["cancel_requested"]:
            ended.append(await cancel_job(conn, job_id, fence, service=service))
        else:
            ended.append(await fail_job(conn, job_id, fence, _exhausted("job", row["tries"]), service=service))
    return ended


async def end_exhausted_revisions(conn: Connection, service: str) -> list[Revision]:
    """Fail exports and reject evaluations whose lease ran out with no try left; fail imports whose caller is gone.

    Call it in a transaction, as `end_exhausted_jobs`.
    """
    rows = await conn.fetch(
        "select revision_id, fence, tries, state, checkpoint_id from revisions"
        " where state in ('exporting', 'evaluating') and lease_until < clock_timestamp()"
        f" and (tries >= {MAX_TRIES} or (state = 'exporting' and checkpoint_id is null))"
        " order by revision_id limit $1 for update skip locked",
        BATCH,
    )
    ended: list[Revision] = []
    for row in rows:
        revision_id, fence, tries = row["revision_id"], row["fence"], row["tries"]
        if row["state"] == RevisionState.EXPORTING:
            cause = _exhausted("export" if row["checkpoint_id"] else "import", tries)
            ended.append(await fail_export(conn, revision_id, fence, cause, service=service))
        else:
            ended.append(await _reject(conn, revision_id, fence, tries, service))
    return ended


async def _reject(conn: Connection, revision_id: UUID, fence: int, tries: int, service: str) -> Revision:
    summary = _exhausted("evaluation", tries).detail
    return await move_revision(
        conn,
        revision_id,
        RevisionState.REJECTED,
        service=service,
        fence=fence,
        fact=lambda revision: rejected_fact(revision, summary),
        origins=frozenset({RevisionState.EVALUATING}),
        changes={"reason": summary},
    )


def _exhausted(what: str, tries: int) -> Cause:
    times = "once" if tries == 1 else f"{tries} times"
    return Cause(
        code="tries_used_up",
        detail=f"the {what} was begun {times} and never finished: each time, whoever worked on it stopped answering",
        fault="server",
    )
