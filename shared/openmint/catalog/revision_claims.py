"""Claims of exports and evaluations: who works on which revision, under which fence, for how long."""

from uuid import UUID

import asyncpg

from openmint.catalog.database import Connection
from openmint.catalog.rows import Revision, RevisionState
from openmint.catalog.transitions import MAX_TRIES, move_revision
from openmint.errors import Fenced

CANDIDATES_PER_TENANT = 8
"""How many of a tenant's oldest due revisions one claim looks at; other claims may hold locks on the first of them."""

MAX_CANDIDATES = 64


# "Not held" instead of "free or lapsed": that most of what is open is due is then also what the planner expects, and it
# reads each tenant's oldest from the index instead of sorting everything that waits.
_EXPORT_IS_DUE = (
    "r.state in ('pending', 'exporting') and (r.state <> 'exporting'"
    f" or (r.checkpoint_id is not null and r.lease_until < clock_timestamp() and r.tries < {MAX_TRIES}))"
)
_EVALUATION_IS_DUE = (
    "r.state in ('exported', 'evaluating') and (r.state <> 'evaluating'"
    f" or (r.lease_until < clock_timestamp() and r.tries < {MAX_TRIES}))"
)


async def claim_export(
    conn: Connection,
    owner: str,
    lease_s: float,
    revision_id: UUID | None = None,
    *,
    base: str | None = None,
) -> Revision | None:
    """Take a due export: that revision, or the one that fairness puts first; None when nothing is due.

    First comes the tenant with the fewest exports under way per weight, then the oldest.
    """
    return await _claim(conn, RevisionState.EXPORTING, _EXPORT_IS_DUE, owner, lease_s, revision_id, base)


async def claim_evaluation(
    conn: Connection,
    owner: str,
    lease_s: float,
    revision_id: UUID | None = None,
    *,
    base: str | None = None,
) -> Revision | None:
    """Take a due evaluation, as `claim_export` takes an export."""
    return await _claim(conn, RevisionState.EVALUATING, _EVALUATION_IS_DUE, owner, lease_s, revision_id, base)


async def heartbeat_revision(conn: Connection, revision_id: UUID, fence: int, lease_s: float) -> None:
    """Hold the lease for another `lease_s` from now. Raises: Fenced."""
    held = await conn.fetchval(
        "update revisions set lease_until = clock_timestamp() + make_interval(secs => $3)"
        " where revision_id = $1 and state in ('exporting', 'evaluating') and (fence = $2 or fencing_is_off())"
        " returning true",
        revision_id,
        fence,
        lease_s,
    )
    if not held:
        raise Fenced(f"revision {revision_id} is no longer held under fence {fence}")


async def release_revision(conn: Connection, revision_id: UUID, fence: int) -> None:
    """Give an export or evaluation back on a graceful stop: claimable at once, no try used up. Raises: Fenced."""
    released = await conn.fetchval(
        "update revisions set lease_until = clock_timestamp() - interval '1 microsecond', owner = null,"
        " fence = fence + 1, tries = greatest(tries - 1, 0), changed_at = clock_timestamp()"
        " where revision_id = $1 and fence = $2 and state in ('exporting', 'evaluating') returning true",
        revision_id,
        fence,
    )
    if not released:
        raise Fenced(f"revision {revision_id} is no longer held under fence {fence}")


async def _claim(
    conn: Connection,
    to: RevisionState,
    is_due: str,
    owner: str,
    lease_s: float,
    revision_id: UUID | None,
    base: str | None,
) -> Revision | None:
    async with conn.transaction():
        if revision_id is not None:
            chosen = await conn.fetchrow(
                "select r.revision_id, r.fence, r.tries, r.state from revisions r"
                f" where r.revision_id = $1 and {is_due} for update skip locked",
                revision_id,
            )
        else:
            chosen = await _lock_due_revision(conn, to, is_due, base)
        if chosen is None:
            return None
        tries = chosen["tries"] + 1 if chosen["state"] == to else 1
        return await move_revision(
            conn,
            chosen["revision_id"],
            to,
            service="",
            fence=chosen["fence"],
            fact=None,
            origins=frozenset({RevisionState(chosen["state"])}),
            changes={"fence": chosen["fence"] + 1, "tries": tries, "owner": owner},
            lease_s=lease_s,
        )


async def _lock_due_revision(
    conn: Connection, to: RevisionState, is_due: str, base: str | None
) -> asyncpg.Record | None:
    return await conn.fetchrow(
        f"""
        with held as (
            select tenant, count(*) as under_way from revisions
            where state = '{to}' and lease_until >= clock_timestamp() group by tenant
        ), candidates as (
            select due.revision_id, shares.share
            from (
                select t.tenant, coalesce(held.under_way, 0) / t.weight as share
                from tenants t left join held using (tenant)
            ) shares
            cross join lateral (
                select r.revision_id from revisions r
                where r.tenant = shares.tenant and {is_due}
                    and ($1::text is null or r.base = $1)
                order by r.revision_id limit {CANDIDATES_PER_TENANT}
            ) due
            order by shares.share, due.revision_id limit {MAX_CANDIDATES}
        )
        select r.revision_id, r.fence, r.tries, r.state
        from candidates c join revisions r on r.revision_id = c.revision_id
        where {is_due}
        order by c.share, c.revision_id limit 1
        for update of r skip locked
        """,
        base,
    )
