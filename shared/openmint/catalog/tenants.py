"""Tenants and their share when they compete for trainers."""

from openmint.catalog.database import Connection
from openmint.catalog.rows import Tenant
from openmint.errors import NotFound
from openmint.identifiers import check_name


async def ensure_tenant(conn: Connection, tenant: str, weight: float | None = None) -> Tenant:
    """The tenant, made now if it is new; `weight`, if given, becomes its share. Raises: BadName."""
    check_name(tenant, "tenant")
    row = await conn.fetchrow("select tenant, weight from tenants where tenant = $1", tenant)
    if row is None or (weight is not None and row["weight"] != weight):
        row = await conn.fetchrow(
            "insert into tenants (tenant, weight) values ($1, coalesce($2::real, 1))"
            " on conflict (tenant) do update set weight = coalesce($2::real, tenants.weight) returning tenant, weight",
            tenant,
            weight,
        )
    assert row is not None
    return Tenant(**row)


async def find_tenant(conn: Connection, tenant: str) -> Tenant:
    """Raises: NotFound."""
    row = await conn.fetchrow("select tenant, weight from tenants where tenant = $1", tenant)
    if row is None:
        raise NotFound(f"there is no tenant {tenant!r}")
    return Tenant(**row)


async def list_tenants(conn: Connection) -> list[Tenant]:
    """All of them, by name."""
    return [Tenant(**row) for row in await conn.fetch("select tenant, weight from tenants order by tenant")]
