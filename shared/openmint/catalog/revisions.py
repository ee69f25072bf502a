"""Revisions: export, verdict, quarantine and retirement.

Claims are made in revision_claims.py, names resolved in resolution.py; both are offered here too.
"""

from uuid import UUID

import asyncpg

from openmint.catalog.database import Connection, value_of
from openmint.catalog.evaluations import insert_evaluations
from openmint.catalog.policies import MAX_PAGE, ensure_policy
from openmint.catalog.resolution import Resolution, resolve
from openmint.catalog.revision_claims import claim_evaluation, claim_export, heartbeat_revision, release_revision
from openmint.catalog.revision_facts import (
    artefact_of,
    exported_fact,
    failed_fact,
    identity_of,
    rejected_fact,
    retired_fact,
)
from openmint.catalog.rows import (
    REVISION_COLUMNS,
    EvaluationDraft,
    JsonObject,
    Revision,
    RevisionState,
    dump_json,
    revision_from,
)
from openmint.catalog.transitions import move_revision
from openmint.errors import BadRequest, Conflict, NotEligible, NotFound
from openmint.events import (
    Cause,
    RevisionEligible,
    RevisionExported,
    RevisionQuarantined,
    RevisionRejected,
)
from openmint.identifiers import digest_bytes

_REVISIONS = "revisions r join policies p using (policy_id)"


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
        fact=lambda revision: failed_fact(revision, cause),
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
        return kind(
            **identity_of(revision),
            **artefact_of(revision),
            causation_id=str(revision.hint_event_id),
            evaluation_id=evaluation_id,
            summary=summary,
        )

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
            **identity_of(revision), **artefact_of(revision), summary=f"waived: {reason}", waived_by=actor
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
            fact=lambda revision: RevisionQuarantined(**identity_of(revision), **artefact_of(revision), reason=reason),
            changes={"reason": reason, "quarantined_from": former, "fence": row["fence"] + 1},
        )


async def quarantinable(conn: Connection, base: str, digest: str) -> list[UUID]:
    """The revisions with these bytes that may still be used: several policies may share a digest."""
    rows = await conn.fetch(
        "select revision_id from revisions where digest = $1 and base = $2"
        " and state in ('exported', 'evaluating', 'eligible', 'rejected') order by revision_id",
        digest_bytes(digest),
        base,
    )
    return [row["revision_id"] for row in rows]


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
            RevisionState.ELIGIBLE: lambda r: RevisionEligible(**identity_of(r), **artefact_of(r), summary=words),
            RevisionState.REJECTED: lambda r: RevisionRejected(**identity_of(r), **artefact_of(r), summary=words),
            RevisionState.EXPORTED: lambda r: RevisionExported(
                **identity_of(r), **artefact_of(r), adapter_bytes=r.adapter_bytes, export_ms=r.export_ms
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


async def _lock(conn: Connection, revision_id: UUID) -> asyncpg.Record:
    row = await conn.fetchrow(
        "select state, fence, quarantined_from from revisions where revision_id = $1 for update", revision_id
    )
    if row is None:
        raise NotFound(f"there is no revision {revision_id}")
    return row


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
    "quarantinable",
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
