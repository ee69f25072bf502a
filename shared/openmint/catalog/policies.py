"""Policies: durable, named records, each over one base model."""

from openmint.catalog.database import Connection
from openmint.catalog.rows import Policy
from openmint.catalog.tenants import ensure_tenant
from openmint.errors import Conflict, NotFound
from openmint.identifiers import check_name

MAX_PAGE = 500
"""The most rows that one page of any list holds."""

_COLUMNS = "policy_id, tenant, name, base, created_at"


async def ensure_policy(conn: Connection, tenant: str, name: str, base: str) -> Policy:
    """The policy, made now if it is new. The base model must be registered.

    Raises: BadName, Conflict when the policy exists on another base model.
    """
    check_name(name, "policy")
    row = await conn.fetchrow(f"select {_COLUMNS} from policies where tenant = $1 and name = $2", tenant, name)
    if row is None:
        await ensure_tenant(conn, tenant)
        await conn.execute(
            "insert into policies (tenant, name, base) values ($1, $2, $3) on conflict (tenant, name) do nothing",
            tenant,
            name,
            base,
        )
        row = await conn.fetchrow(f"select {_COLUMNS} from policies where tenant = $1 and name = $2", tenant, name)
    assert row is not None
    policy = Policy(**row)
    if policy.base != base:
        raise Conflict(f"policy {tenant}/{name} is on base model {policy.base!r}, not {base!r}", field="base")
    return policy


async def find_policy(conn: Connection, tenant: str, name: str) -> Policy:
    """Raises: NotFound, also for another tenant's policy."""
    row = await conn.fetchrow(f"select {_COLUMNS} from policies where tenant = $1 and name = $2", tenant, name)
    if row is None:
        raise NotFound(f"there is no policy {tenant}/{name}")
    return Policy(**row)


async def list_policies(conn: Connection, tenant: str, after: str | None = None, limit: int = 100) -> list[Policy]:
    """A page of the tenant's policies by name; `after` is the last name of the page before."""
    rows = await conn.fetch(
        f"select {_COLUMNS} from policies where tenant = $1 and name > $2 order by name limit $3",
        tenant,
        after or "",
        min(limit, MAX_PAGE),
    )
    return [Policy(**row) for row in rows]
