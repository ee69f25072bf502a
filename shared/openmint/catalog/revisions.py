"""Revisions: export, evaluation, verdict, quarantine and retirement. What a caller's name means: resolution.py."""

from uuid import UUID

import asyncpg

from openmint.catalog.database import Connection, value_of
from openmint.catalog.evaluations import insert_evaluations
from openmint.catalog.policies import MAX_PAGE, ensure_policy
from openmint.catalog.resolution import Resolution, resolve
from openmint.catalog.rows import (
    REVISION_COLUMNS,
    EvaluationDraft,
    JsonObject,
    Revision,
    RevisionState,
    dump_json,
    revision_from,
)
from openmint.catalog.transitions import MAX_TRIES, move_revision
from openmint.errors import BadRequest, Conflict, Fenced, NotEligible, NotFound
from openmint.events import (
    Cause,
    RevisionEligible,
    RevisionExported,
    RevisionFailed,
    RevisionQuarantined,
    RevisionRejected,
    RevisionRetired,
)
from openmint.identifiers import digest_bytes

CANDIDATES_PER_TENANT = 8
"""How many of a tenant's oldest due revisions one claim looks at; other claims may hold locks on the first of them."""

MAX_CANDIDATES = 64

_REVISIONS = "revisions r join policies p using (policy_id)"

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


async def begin_import(
    conn: Connection,
    service: str,
    tenant: str,
    policy: str,
    base: str,
    source: str,
    owner: str,
    lease_s: float,
    step: int = 0,
) -> Revision:
    """A new revision for a foreign PEFT folder, held by the caller under fence 1. `source` says where it came from.

    An import whose lease runs out fails: only its caller has the folder. Raises: Conflict, BadName.
    """
    async with conn.transaction():
        row_policy = await ensure_policy(conn, tenant, policy, base)
        revision_id: UUID = await value_of(
            conn,
            "insert into revisions (tenant, policy_id, base, step, state, fence, tries, owner, lease_until, source)"
            " values ($1, $2, $3, $4, 'exporting', 1, 1, $5, clock_timestamp() + make_interval(secs => $6), $7)"
            " returning revision_id",
            tenant,
            row_policy.policy_id,
            base,
            step,
            owner,
            lease_s,
            f"{service}:{source}",
        )
        return await find_revision(conn, revision_id)


async def commit_export(
    conn: Connection,
    revision_id: UUID,
    fence: int,
    digest: str,
    manifest: JsonObject,
    adapter_bytes: int,
    export_ms: float | None,
    *,
    service: str = "exporter",
) -> Revision:
    """Give the revision its digest and its number; its files are complete in the store. Raises: Fenced, NotFound."""
    rank = manifest.get("rank")
    if not isinstance(rank, int):
        raise BadRequest(f"the manifest of revision {revision_id} names no rank", field="manifest")
    async with conn.transaction():
        row = await conn.fetchrow(
            "select number, policy_id, (fence = $2 and state = 'exporting') or fencing_is_off() as may_write"
            " from revisions where revision_id = $1 for update",
            revision_id,
            fence,
        )
        number: int | None = None if row is None else row["number"]
        if row is not None and row["may_write"] and number is None:
            number = await conn.fetchval(
                "update policies set next_number = next_number + 1 where policy_id = $1 returning next_number - 1",
                row["policy_id"],
            )
        return await move_revision(
            conn,
            revision_id,
            RevisionState.EXPORTED,
            service=service,
            fence=fence,
            fact=exported_fact,
            origins=frozenset({RevisionState.EXPORTING}),
            changes={
                "digest": digest_bytes(digest),
                "number": number,
                "rank": rank,
                "adapter_bytes": adapter_bytes,
                "export_ms": export_ms,
                "manifest": dump_json(manifest),
                "tries": 0,
            },
        )


async def fail_export(
    conn: Connection, revision_id: UUID, fence: int, cause: Cause, *, service: str = "exporter"
) -> Revision:
    """End the revision: it can't be exported, whoever tries. Raises: Fenced."""
    return await move_revision(
        conn,
        revision_id,
        RevisionState.FAILED,
        service=service,
        fence=fence,
        fact=lambda revision: RevisionFailed(**_identity(revision), cause=cause),
        changes={"cause": cause.model_dump_json()},
    )


async def record_verdict(
    conn: Connection,
    revision_id: UUID,
    fence: int,
    passed: bool,
    summary: str,
    evaluations: list[EvaluationDraft],
    *,
    service: str = "evaluator",
) -> Revision:
    """Record the evaluations and make the revision eligible or rejected. Raises: Fenced, NotEligible."""
    evaluation_id = evaluations[0].evaluation_id if evaluations else None

    def fact(revision: Revision) -> RevisionEligible | RevisionRejected:
        kind = RevisionEligible if passed else RevisionRejected
        return kind(**_identity(revision), **_artefact(revision), evaluation_id=evaluation_id, summary=summary)

    async with conn.transaction():
        revision = await move_revision(
            conn,
            revision_id,
            RevisionState.ELIGIBLE if passed else RevisionState.REJECTED,
            service=service,
            fence=fence,
            fact=fact,
            origins=frozenset({RevisionState.EVALUATING}),
            changes={"reason": summary},
        )
        await insert_evaluations(conn, revision_id, fence, evaluations)
        return revision


async def waive(conn: Connection, revision_id: UUID, actor: str, reason: str, *, service: str = "gateway") -> Revision:
    """Let a rejected revision pass on a person's word, which is kept with name and reason. Raises: NotEligible."""
    if not actor or not reason:
        raise BadRequest("a waiver names who gives it and why", field="reason")
    return await move_revision(
        conn,
        revision_id,
        RevisionState.ELIGIBLE,
        service=service,
        fence=None,
        fact=lambda revision: RevisionEligible(
            **_identity(revision), **_artefact(revision), summary=f"waived: {reason}", waived_by=actor
        ),
        origins=frozenset({RevisionState.REJECTED}),
        changes={"waived_by": actor, "reason": f"waived: {reason}"},
    )


async def quarantine(conn: Connection, revision_id: UUID, reason: str, service: str) -> Revision:
    """Take a revision that was found bad out of use; whoever evaluates it now is fenced off.

    An alias on it answers with the reason, never with the base. Again on the same revision: nothing changes.
    Raises: NotEligible, NotFound.
    """
    async with conn.transaction():
        row = await _lock(conn, revision_id)
        state = RevisionState(row["state"])
        if state is RevisionState.QUARANTINED:
            return await find_revision(conn, revision_id)
        former = RevisionState.EXPORTED if state is RevisionState.EVALUATING else state
        return await move_revision(
            conn,
            revision_id,
            RevisionState.QUARANTINED,
            service=service,
            fence=None,
            fact=lambda revision: RevisionQuarantined(**_identity(revision), **_artefact(revision), reason=reason),
            changes={"reason": reason, "quarantined_from": former, "fence": row["fence"] + 1},
        )


async def release_quarantine(
    conn: Connection, revision_id: UUID, actor: str, *, reason: str = "", service: str = "gateway"
) -> Revision:
    """Put a quarantined revision back to where it was; one that was being evaluated is evaluated anew.

    Raises: NotEligible, NotFound.
    """
    async with conn.transaction():
        row = await _lock(conn, revision_id)
        if row["state"] != RevisionState.QUARANTINED:
            raise NotEligible(f"revision {revision_id} is {row['state']}, not quarantined")
        former = RevisionState(row["quarantined_from"])
        words = f"released by {actor}" + (f": {reason}" if reason else "")
        facts = {
            RevisionState.ELIGIBLE: lambda r: RevisionEligible(**_identity(r), **_artefact(r), summary=words),
            RevisionState.REJECTED: lambda r: RevisionRejected(**_identity(r), **_artefact(r), summary=words),
            RevisionState.EXPORTED: lambda r: RevisionExported(
                **_identity(r), **_artefact(r), adapter_bytes=r.adapter_bytes, export_ms=r.export_ms
            ),
        }
        return await move_revision(
            conn,
            revision_id,
            former,
            service=service,
            fence=None,
            fact=facts[former],
            origins=frozenset({RevisionState.QUARANTINED}),
            changes={"reason": words, "quarantined_from": None, "tries": 0},
        )


async def retire(conn: Connection, revision_id: UUID, actor: str, *, service: str = "gateway") -> Revision:
    """Stop offering a revision to which no alias points; its bytes may go. Raises: Conflict, NotEligible, NotFound."""
    async with conn.transaction():
        await _lock(conn, revision_id)
        alias = await conn.fetchval("select alias from aliases where revision_id = $1 limit 1", revision_id)
        if alias is not None:
            raise Conflict(f"alias {alias!r} points to revision {revision_id}: move it away first")
        return await move_revision(
            conn,
            revision_id,
            RevisionState.RETIRED,
            service=service,
            fence=None,
            fact=retired_fact,
            changes={"reason": f"retired by {actor}"},
        )


async def mark_deleted(conn: Connection, revision_id: UUID) -> Revision:
    """Leave the tombstone of a retired revision; its files are deleted after this commits. Raises: NotEligible."""
    return await move_revision(conn, revision_id, RevisionState.DELETED, service="keeper", fence=None, fact=None)


async def retired_revisions(conn: Connection, retired_for_s: float, limit: int = 100) -> list[Revision]:
    """Revisions retired for so long, the longest first: their files may go."""
    rows = await conn.fetch(
        f"select {REVISION_COLUMNS} from {_REVISIONS} where r.state = 'retired'"
        " and r.changed_at < clock_timestamp() - make_interval(secs => $1) order by r.changed_at limit $2",
        retired_for_s,
        limit,
    )
    return [revision_from(row) for row in rows]


async def find_revision(conn: Connection, revision_id: UUID, tenant: str | None = None) -> Revision:
    """The revision; with `tenant`, only if it is that tenant's. Raises: NotFound."""
    row = await conn.fetchrow(f"select {REVISION_COLUMNS} from {_REVISIONS} where r.revision_id = $1", revision_id)
    if row is None or (tenant is not None and row["tenant"] != tenant):
        raise NotFound(f"there is no revision {revision_id}")
    return revision_from(row)


async def list_revisions(
    conn: Connection, policy_id: UUID, after: UUID | None = None, limit: int = 100
) -> list[Revision]:
    """A page of the policy's revisions, newest first; `after` is the last id of the page before."""
    rows = await conn.fetch(
        f"select {REVISION_COLUMNS} from {_REVISIONS} where r.policy_id = $1"
        " and ($2::uuid is null or r.revision_id < $2) order by r.revision_id desc limit $3",
        policy_id,
        after,
        min(limit, MAX_PAGE),
    )
    return [revision_from(row) for row in rows]


def exported_fact(revision: Revision) -> RevisionExported:
    """The fact of the export; the same id whenever it is told."""
    return RevisionExported(
        event_id=revision.hint_event_id,
        **_identity(revision),
        **_artefact(revision),
        adapter_bytes=revision.adapter_bytes or 0,
        export_ms=revision.export_ms,
    )


def rejected_fact(revision: Revision, summary: str) -> RevisionRejected:
    """The fact of a rejection without a report."""
    return RevisionRejected(**_identity(revision), **_artefact(revision), summary=summary)


def failed_fact(revision: Revision, cause: Cause) -> RevisionFailed:
    """The fact of an export that is given up."""
    return RevisionFailed(**_identity(revision), cause=cause)


def retired_fact(revision: Revision) -> RevisionRetired:
    """The fact of the retirement."""
    return RevisionRetired(**_identity(revision), **_artefact(revision))


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


async def _lock(conn: Connection, revision_id: UUID) -> asyncpg.Record:
    row = await conn.fetchrow(
        "select state, fence, quarantined_from from revisions where revision_id = $1 for update", revision_id
    )
    if row is None:
        raise NotFound(f"there is no revision {revision_id}")
    return row


def _identity(revision: Revision) -> JsonObject:
    return {
        "tenant": revision.tenant,
        "revision_id": revision.revision_id,
        "job_id": revision.job_id,
        "policy": revision.policy,
        "base": revision.base,
        "step": revision.step,
    }


def _artefact(revision: Revision) -> JsonObject:
    return {"digest": revision.digest, "number": revision.number}


__all__ = [
    "Resolution",
    "begin_import",
    "claim_evaluation",
    "claim_export",
    "commit_export",
    "exported_fact",
    "fail_export",
    "failed_fact",
    "find_revision",
    "heartbeat_revision",
    "list_revisions",
    "mark_deleted",
    "quarantine",
    "record_verdict",
    "rejected_fact",
    "release_quarantine",
    "release_revision",
    "resolve",
    "retire",
    "retired_fact",
    "retired_revisions",
    "waive",
]
