"""Datasets that tenants have put into the store, named by the digest of their canonical rows."""

from openmint.catalog.database import Connection
from openmint.catalog.rows import Dataset, fields_of
from openmint.catalog.tenants import ensure_tenant
from openmint.errors import NotFound
from openmint.identifiers import digest_bytes, digest_from_bytes

_COLUMNS = "tenant, digest, rows, bytes, key, created_at"


async def record_dataset(
    conn: Connection, tenant: str, digest: str, row_count: int, byte_count: int, key: str
) -> Dataset:
    """Name a dataset whose file is complete in the store. The same one again answers the same."""
    await ensure_tenant(conn, tenant)
    await conn.execute(
        "insert into datasets (tenant, digest, rows, bytes, key) values ($1, $2, $3, $4, $5) on conflict do nothing",
        tenant,
        digest_bytes(digest),
        row_count,
        byte_count,
        key,
    )
    return await find_dataset(conn, tenant, digest)


async def find_dataset(conn: Connection, tenant: str, digest: str) -> Dataset:
    """Raises: NotFound, also when only another tenant has put the same rows."""
    row = await conn.fetchrow(
        f"select {_COLUMNS} from datasets where tenant = $1 and digest = $2", tenant, digest_bytes(digest)
    )
    if row is None:
        raise NotFound(f"tenant {tenant} has no dataset {digest}", field="dataset.digest")
    return Dataset(**fields_of(row, digest=digest_from_bytes(row["digest"])))


async def list_datasets(conn: Connection, tenant: str, limit: int = 100) -> list[Dataset]:
    """The tenant's datasets, newest first."""
    rows = await conn.fetch(
        f"select {_COLUMNS} from datasets where tenant = $1 order by created_at desc, digest limit $2", tenant, limit
    )
    return [Dataset(**fields_of(row, digest=digest_from_bytes(row["digest"]))) for row in rows]
