"""Aliases: look, promote, roll back, freeze, thaw. Every move is compare-and-set where the caller says what it saw."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from openmint.catalog import aliases, policies
from openmint.catalog.rows import Alias, AliasHistoryEntry, AliasMove
from openmint.identifiers import ByAlias, PolicyModel, PolicyName, check_alias
from openmint_gateway.control.parts import Answer, ControlParts, Parts, Promoter, Reader, StrictBody
from openmint_gateway.control.revisions import find_in_policy
from openmint_gateway.intake import SERVICE

router = APIRouter(prefix="/v1/policies/{policy}/aliases", tags=["aliases"])

VISIBLE_DEADLINE_S = 5.0
"""Twenty times the promised 250 ms; the move itself is committed whatever happens."""

Wait = Annotated[
    Literal["committed", "visible"],
    Query(description="visible: answer once this gateway answers from it"),
]
Reason = Annotated[str, Field(default="", max_length=1000)]
Version = Annotated[
    int | None,
    Field(default=None, ge=0, description="The alias version that was read; 0: it must not exist yet; null: any"),
]


class Promotion(StrictBody):
    """Where the alias is to point."""

    revision: str = Field(max_length=80, description="An id, a number, step-<n>, sha256:… or another alias")
    expected_version: Version = None
    reason: Reason = ""


class Rollback(StrictBody):
    """Back to the revision before, or to a number."""

    to_number: int | None = Field(default=None, ge=1)
    expected_version: Version = None
    reason: Reason = ""


class Change(StrictBody):
    """Freeze or thaw."""

    expected_version: Version = None
    reason: Reason = ""


class MoveAnswer(Answer):
    """What a move did."""

    policy: str
    alias: str
    alias_version: int
    digest: str
    number: int
    previous_digest: str | None
    previous_number: int | None
    frozen: bool
    changed: bool = Field(description="False when the alias was there already")
    visible: bool = Field(description="True when this gateway is known to answer from it now")


@router.get("")
async def list_aliases(parts: Parts, caller: Reader, policy: str) -> list[Alias]:
    """All aliases of a policy, by name."""
    async with parts.catalog.connection() as conn:
        row = await policies.find_policy(conn, caller.tenant, policy)
        return await aliases.list_aliases(conn, row.policy_id)


@router.get("/{alias}")
async def get_alias(parts: Parts, caller: Reader, policy: str, alias: str) -> Alias:
    """Where an alias points, and its version."""
    async with parts.catalog.connection() as conn:
        row = await policies.find_policy(conn, caller.tenant, policy)
        return await aliases.find_alias(conn, row.policy_id, alias)


@router.get("/{alias}/history")
async def get_history(parts: Parts, caller: Reader, policy: str, alias: str) -> list[AliasHistoryEntry]:
    """The moves of an alias, newest first."""
    async with parts.catalog.connection() as conn:
        row = await policies.find_policy(conn, caller.tenant, policy)
        return await aliases.history(conn, row.policy_id, alias)


@router.put("/{alias}")
async def promote(
    parts: Parts, caller: Promoter, policy: str, alias: str, promotion: Promotion, wait: Wait = "committed"
) -> MoveAnswer:
    """Let the alias point to an eligible revision."""
    check_alias(alias)
    async with parts.catalog.transaction() as conn:
        revision = await find_in_policy(conn, caller.tenant, policy, promotion.revision)
        move = await aliases.move_alias(
            conn,
            service=SERVICE,
            policy_id=revision.policy_id,
            alias=alias,
            revision_id=revision.revision_id,
            expected_version=promotion.expected_version,
            actor=caller.key_id,
            reason=promotion.reason,
        )
    return await _answer(parts, caller.tenant, move, wait)


@router.post("/{alias}/rollback")
async def roll_back(
    parts: Parts, caller: Promoter, policy: str, alias: str, rollback: Rollback, wait: Wait = "committed"
) -> MoveAnswer:
    """Move the alias to the revision that it pointed to before, or to a number: one more move."""
    async with parts.catalog.transaction() as conn:
        row = await policies.find_policy(conn, caller.tenant, policy)
        move = await aliases.roll_back(
            conn,
            service=SERVICE,
            policy_id=row.policy_id,
            alias=alias,
            actor=caller.key_id,
            reason=rollback.reason,
            to_number=rollback.to_number,
            expected_version=rollback.expected_version,
        )
    return await _answer(parts, caller.tenant, move, wait)


@router.post("/{alias}/freeze")
async def freeze(parts: Parts, caller: Promoter, policy: str, alias: str, change: Change) -> MoveAnswer:
    """Let nobody move the alias until it is thawed."""
    async with parts.catalog.transaction() as conn:
        row = await policies.find_policy(conn, caller.tenant, policy)
        move = await aliases.freeze(
            conn,
            service=SERVICE,
            policy_id=row.policy_id,
            alias=alias,
            actor=caller.key_id,
            reason=change.reason,
            expected_version=change.expected_version,
        )
    return await _answer(parts, caller.tenant, move, "committed")


@router.post("/{alias}/thaw")
async def thaw(parts: Parts, caller: Promoter, policy: str, alias: str, change: Change) -> MoveAnswer:
    """Let the alias be moved again."""
    async with parts.catalog.transaction() as conn:
        row = await policies.find_policy(conn, caller.tenant, policy)
        move = await aliases.thaw(
            conn,
            service=SERVICE,
            policy_id=row.policy_id,
            alias=alias,
            actor=caller.key_id,
            reason=change.reason,
            expected_version=change.expected_version,
        )
    return await _answer(parts, caller.tenant, move, "committed")


async def _answer(parts: ControlParts, tenant: str, move: AliasMove, wait: str) -> MoveAnswer:
    visible = False
    if wait == "visible":
        name = PolicyModel(PolicyName(tenant, move.policy), ByAlias(move.alias))
        visible = not move.changed or await parts.resolver.wait_visible(name, move.alias_version, VISIBLE_DEADLINE_S)
    return MoveAnswer(
        policy=move.policy,
        alias=move.alias,
        alias_version=move.alias_version,
        digest=move.target.digest,
        number=move.target.number,
        previous_digest=move.previous.digest if move.previous else None,
        previous_number=move.previous.number if move.previous else None,
        frozen=move.frozen,
        changed=move.changed,
        visible=visible,
    )
