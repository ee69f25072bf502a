"""Policies: make, list, look at."""

from fastapi import APIRouter, Query

from openmint.catalog import bases, policies
from openmint.catalog.rows import Policy
from openmint.identifiers import Name
from openmint_gateway.control.parts import Limit, Page, Parts, Reader, StrictBody, Trainer

router = APIRouter(prefix="/v1/policies", tags=["policies"])


class PolicyDraft(StrictBody):
    """A policy to make."""

    name: Name
    base: Name


@router.post("", status_code=201)
async def make_policy(parts: Parts, caller: Trainer, draft: PolicyDraft) -> Policy:
    """Make a policy on a base model. One that is there already, on the same base, is returned as it is."""
    async with parts.catalog.transaction() as conn:
        await bases.find_base(conn, draft.base)
        return await policies.ensure_policy(conn, caller.tenant, draft.name, draft.base)


@router.get("")
async def list_policies(
    parts: Parts,
    caller: Reader,
    after: str | None = Query(default=None, max_length=63),
    limit: Limit = 100,
) -> Page[Policy]:
    """The tenant's policies by name."""
    async with parts.catalog.connection() as conn:
        found = await policies.list_policies(conn, caller.tenant, after, limit)
    return Page(items=found, next=found[-1].name if len(found) == limit else None)


@router.get("/{policy}")
async def get_policy(parts: Parts, caller: Reader, policy: str) -> Policy:
    """One policy."""
    async with parts.catalog.connection() as conn:
        return await policies.find_policy(conn, caller.tenant, policy)
