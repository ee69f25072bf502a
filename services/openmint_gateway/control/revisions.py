"""Revisions of a policy, their evaluation reports, and what a person may decide about them."""

from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from fastapi import APIRouter
from pydantic import Field

from openmint.catalog import Connection, evaluations, policies, revisions
from openmint.catalog.rows import Evaluation, Revision, RevisionState
from openmint.errors import NotFound
from openmint.events import Cause
from openmint.identifiers import parse_selector
from openmint_gateway.control.parts import Answer, Limit, Page, Parts, Promoter, Reader, StrictBody

router = APIRouter(prefix="/v1", tags=["revisions"])

MAX_REPORT_BYTES = 16 * 1024 * 1024


class RevisionAnswer(Answer):
    """One immutable adapter of a policy."""

    revision_id: UUID
    policy: str
    base: str
    number: int | None
    digest: str | None
    step: int
    state: RevisionState
    rank: int | None
    adapter_bytes: int | None
    export_ms: float | None
    job_id: UUID | None
    source: str
    reason: str = Field(description="Why it is in this state, in words")
    waived_by: str | None
    cause: Cause | None
    created_at: datetime
    changed_at: datetime


class Decision(StrictBody):
    """What a person decides, and why; both are kept."""

    reason: str = Field(min_length=1, max_length=1000)


async def find_in_policy(conn: Connection, tenant: str, policy: str, selector: str) -> Revision:
    """The revision by id, number, `step-<n>`, digest or alias. Raises: NotFound, BadName, Quarantined."""
    try:
        revision_id = UUID(selector)
    except ValueError:
        revision_id = (await revisions.resolve(conn, tenant, policy, parse_selector(selector))).revision_id
    revision = await revisions.find_revision(conn, revision_id, tenant)
    if revision.policy != policy:
        raise NotFound(f"policy {tenant}/{policy} has no revision {selector[:80]}")
    return revision


@router.get("/policies/{policy}/revisions")
async def list_revisions(
    parts: Parts, caller: Reader, policy: str, after: UUID | None = None, limit: Limit = 100
) -> Page[RevisionAnswer]:
    """The policy's revisions, newest first."""
    async with parts.catalog.connection() as conn:
        row = await policies.find_policy(conn, caller.tenant, policy)
        found = await revisions.list_revisions(conn, row.policy_id, after, limit)
    items = [RevisionAnswer.model_validate(revision) for revision in found]
    return Page(items=items, next=str(found[-1].revision_id) if len(found) == limit else None)


@router.get("/policies/{policy}/revisions/{selector}")
async def get_revision(parts: Parts, caller: Reader, policy: str, selector: str) -> RevisionAnswer:
    """One revision by id, number, `step-<n>`, digest or alias."""
    async with parts.catalog.connection() as conn:
        return RevisionAnswer.model_validate(await find_in_policy(conn, caller.tenant, policy, selector))


@router.get("/policies/{policy}/revisions/{selector}/evaluations")
async def list_evaluations(parts: Parts, caller: Reader, policy: str, selector: str) -> list[Evaluation]:
    """What was measured of the revision, oldest first."""
    async with parts.catalog.connection() as conn:
        revision = await find_in_policy(conn, caller.tenant, policy, selector)
        return await evaluations.list_evaluations(conn, revision.revision_id)


@router.get("/evaluations/{evaluation_id}/report")
async def get_report(parts: Parts, caller: Reader, evaluation_id: UUID) -> dict[str, Any]:
    """The whole report of an evaluation."""
    async with parts.catalog.connection() as conn:
        evaluation = await evaluations.find_evaluation(conn, evaluation_id)
        try:
            await revisions.find_revision(conn, evaluation.revision_id, caller.tenant)
        except NotFound as error:
            raise NotFound(f"there is no evaluation {evaluation_id}") from error
    if evaluation.report_key is None:
        return {"evaluation_id": str(evaluation_id), "summary": evaluation.summary, "scores": evaluation.scores}
    return orjson.loads(await parts.store.get_bytes(evaluation.report_key, MAX_REPORT_BYTES))


@router.post("/policies/{policy}/revisions/{selector}/waive")
async def waive(parts: Parts, caller: Promoter, policy: str, selector: str, decision: Decision) -> RevisionAnswer:
    """Let a rejected revision pass on a person's word."""
    async with parts.catalog.transaction() as conn:
        revision = await find_in_policy(conn, caller.tenant, policy, selector)
        waived = await revisions.waive(conn, revision.revision_id, caller.key_id, decision.reason)
    return RevisionAnswer.model_validate(waived)


@router.post("/policies/{policy}/revisions/{selector}/release")
async def release(parts: Parts, caller: Promoter, policy: str, selector: str, decision: Decision) -> RevisionAnswer:
    """Put a quarantined revision (named by its id) back to where it was."""
    async with parts.catalog.transaction() as conn:
        revision = await find_in_policy(conn, caller.tenant, policy, selector)
        back = await revisions.release_quarantine(conn, revision.revision_id, caller.key_id, reason=decision.reason)
    parts.resolver.doubt(caller.tenant, policy)
    return RevisionAnswer.model_validate(back)


@router.post("/policies/{policy}/revisions/{selector}/retire")
async def retire(parts: Parts, caller: Promoter, policy: str, selector: str) -> RevisionAnswer:
    """Stop offering a revision to which no alias points."""
    async with parts.catalog.transaction() as conn:
        revision = await find_in_policy(conn, caller.tenant, policy, selector)
        retired = await revisions.retire(conn, revision.revision_id, caller.key_id)
    parts.resolver.doubt(caller.tenant, policy, retired.digest)
    return RevisionAnswer.model_validate(retired)
