"""What a tenant uses at this moment, for quotas that are checked at intake."""

from openmint.catalog.database import Connection


async def count_open_jobs(conn: Connection, tenant: str, limit: int) -> int:
    """Jobs that are accepted or running; counting stops at `limit`, so that it stays cheap."""
    return int(
        await conn.fetchval(
            "select count(*) from (select from jobs where tenant = $1 and state in ('accepted', 'running') limit $2) open",
            tenant,
            limit,
        )
    )
