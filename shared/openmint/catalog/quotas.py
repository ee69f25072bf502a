"""What a tenant uses at this moment, for quotas that are checked at intake."""

from openmint.catalog.database import Connection, value_of


async def count_open_jobs(conn: Connection, tenant: str, limit: int) -> int:
    """Jobs that are accepted or running; counting stops at `limit`, so that it stays cheap."""
    count: int = await value_of(
        conn,
        "select count(*) from (select from jobs where tenant = $1 and state in ('accepted', 'running')"
        " limit $2) as open_jobs",
        tenant,
        limit,
    )
    return count
