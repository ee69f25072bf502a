"""The two state machines: which transitions exist, and the one function each that makes them.

A transition is a compare-and-set on state and fence, with the fact that tells it in the same transaction. The
catalogue holds the same table in SQL and a trigger that refuses everything else.

Tries count per stage. When the last lease of a stage runs out and no try is left, the keeper ends it: a job and an
export become `failed`; an evaluation becomes `rejected` with that reason, because a gate that can't answer is closed,
and a person can still waive a rejected revision.
"""

from collections.abc import Callable, Mapping
from typing import Final
from uuid import UUID

from openmint.catalog.database import Connection
from openmint.catalog.outbox_rows import append
from openmint.catalog.rows import (
    JOB_COLUMNS,
    REVISION_COLUMNS,
    Job,
    JobState,
    Revision,
    RevisionState,
    job_from,
    revision_from,
)
from openmint.errors import Conflict, Fenced, NotEligible, NotFound
from openmint.events import Fact

J, R = JobState, RevisionState

JOB_TRANSITIONS: Final[frozenset[tuple[JobState | None, JobState]]] = frozenset(
    {
        (None, J.ACCEPTED),
        (J.ACCEPTED, J.RUNNING),  # claim
        (J.ACCEPTED, J.CANCELLED),
        (J.RUNNING, J.RUNNING),  # claim of an expired lease
        (J.RUNNING, J.COMPLETED),
        (J.RUNNING, J.FAILED),  # permanent error, or tries used up
        (J.RUNNING, J.CANCELLED),
    }
)
"""(from, to); from None is the row's making."""

REVISION_TRANSITIONS: Final[frozenset[tuple[RevisionState | None, RevisionState]]] = frozenset(
    {
        (None, R.PENDING),  # a checkpoint of which a revision is wanted
        (None, R.EXPORTING),  # import of a foreign folder
        (R.PENDING, R.EXPORTING),
        (R.EXPORTING, R.EXPORTING),
        (R.EXPORTING, R.EXPORTED),
        (R.EXPORTING, R.FAILED),
        (R.EXPORTED, R.EVALUATING),
        (R.EVALUATING, R.EVALUATING),
        (R.EVALUATING, R.ELIGIBLE),
        (R.EVALUATING, R.REJECTED),
        (R.REJECTED, R.ELIGIBLE),  # waiver
        (R.EXPORTED, R.QUARANTINED),
        (R.EVALUATING, R.QUARANTINED),
        (R.REJECTED, R.QUARANTINED),
        (R.ELIGIBLE, R.QUARANTINED),
        (R.QUARANTINED, R.EXPORTED),  # release to where it was; an evaluation starts anew
        (R.QUARANTINED, R.REJECTED),
        (R.QUARANTINED, R.ELIGIBLE),
        (R.ELIGIBLE, R.RETIRED),
        (R.REJECTED, R.RETIRED),
        (R.QUARANTINED, R.RETIRED),
        (R.RETIRED, R.DELETED),
    }
)

MAX_TRIES = 8
"""Per stage. A trainer that dies takes a try from each job that it holds, so this is well above the number of deaths
that a healthy fleet sees in one job; a checkpoint gives a job its tries back."""

LEASED_STATES = frozenset({J.RUNNING, R.EXPORTING, R.EVALUATING})


async def move_job(
    conn: Connection,
    job_id: UUID,
    to: JobState,
    *,
    service: str,
    fence: int | None,
    fact: Callable[[Job], Fact],
    origins: frozenset[JobState] | None = None,
    changes: Mapping[str, object] | None = None,
    lease_s: float | None = None,
) -> Job:
    """Make one transition of a job and append its fact. Inside the caller's transaction, if there is one.

    `fence` None means that no claim is needed (a cancel of what nobody holds). `origins` narrows the states to come
    from. `changes` sets further columns. A call repeated after its reply was lost returns the job and tells nothing.
    Raises: Fenced, Conflict, NotFound.
    """
    sources = origins if origins is not None else frozenset(a for a, b in JOB_TRANSITIONS if b is to and a is not None)
    columns, values = _assignments(to, changes or {}, lease_s, first=5)
    async with conn.transaction():
        row = await conn.fetchrow(
            f"update jobs j set state = $2, changed_at = clock_timestamp(), announced_at = clock_timestamp(){columns}"
            " from policies p where p.policy_id = j.policy_id and j.job_id = $1"
            " and ((j.state = any($3::job_state[]) and ($4::int is null or j.fence = $4)) or fencing_is_off())"
            f" returning {JOB_COLUMNS}",
            job_id,
            to,
            list(sources),
            fence,
            *values,
        )
        if row is not None:
            job = job_from(row)
            await append(conn, service, fact(job))
            return job
    found = await conn.fetchrow(
        f"select {JOB_COLUMNS} from jobs j join policies p using (policy_id) where j.job_id = $1", job_id
    )
    if found is None:
        raise NotFound(f"there is no job {job_id}")
    job = job_from(found)
    if fence is not None and job.fence != fence:
        raise Fenced(f"job {job_id} is held under fence {job.fence}, not {fence}")
    if fence is not None and job.state is to:
        return job
    raise Conflict(f"job {job_id} is {job.state} and can't become {to}")


async def move_revision(
    conn: Connection,
    revision_id: UUID,
    to: RevisionState,
    *,
    service: str,
    fence: int | None,
    fact: Callable[[Revision], Fact] | None,
    origins: frozenset[RevisionState] | None = None,
    changes: Mapping[str, object] | None = None,
    lease_s: float | None = None,
) -> Revision:
    """Make one transition of a revision and append its fact, if it has one (claims of a revision tell nothing).

    Raises: Fenced, NotEligible, NotFound.
    """
    sources = (
        origins if origins is not None else frozenset(a for a, b in REVISION_TRANSITIONS if b is to and a is not None)
    )
    columns, values = _assignments(to, changes or {}, lease_s, first=5)
    async with conn.transaction():
        row = await conn.fetchrow(
            f"update revisions r set state = $2, changed_at = clock_timestamp(), announced_at = clock_timestamp()"
            f"{columns} from policies p where p.policy_id = r.policy_id and r.revision_id = $1"
            " and ((r.state = any($3::revision_state[]) and ($4::int is null or r.fence = $4)) or fencing_is_off())"
            f" returning {REVISION_COLUMNS}",
            revision_id,
            to,
            list(sources),
            fence,
            *values,
        )
        if row is not None:
            revision = revision_from(row)
            if fact is not None:
                await append(conn, service, fact(revision))
            return revision
    found = await conn.fetchrow(
        f"select {REVISION_COLUMNS} from revisions r join policies p using (policy_id) where r.revision_id = $1",
        revision_id,
    )
    if found is None:
        raise NotFound(f"there is no revision {revision_id}")
    revision = revision_from(found)
    if fence is not None and revision.fence != fence:
        raise Fenced(f"revision {revision_id} is held under fence {revision.fence}, not {fence}")
    if fence is not None and revision.state is to:
        return revision
    raise NotEligible(f"revision {revision_id} is {revision.state} and can't become {to}")


def _assignments(
    to: JobState | RevisionState, changes: Mapping[str, object], lease_s: float | None, first: int
) -> tuple[str, list[object]]:
    """SQL for the columns to set beside the state, and their values, numbered from `first`."""
    columns: list[str] = []
    values: list[object] = []
    for column, value in changes.items():
        columns.append(f"{column} = ${first + len(values)}")
        values.append(value)
    if lease_s is not None:
        columns.append(f"lease_until = clock_timestamp() + make_interval(secs => ${first + len(values)})")
        values.append(lease_s)
    elif to not in LEASED_STATES:
        columns.extend(("lease_until = null", "owner = null"))
    return "".join(f", {column}" for column in columns), values
