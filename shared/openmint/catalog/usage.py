"""What tenants have used, summed by hour, model name and revision."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from openmint.catalog.database import Connection
from openmint.catalog.rows import fields_of
from openmint.identifiers import digest_bytes, digest_from_bytes


@dataclass(frozen=True, slots=True)
class UsageRow:
    """An amount to add, or a sum read back. `digest` is None for a base model; `hour` is set on reading."""

    tenant: str
    model: str
    digest: str | None
    requests: int
    prompt_tokens: int
    completion_tokens: int
    hour: datetime | None = None


async def record_usage(conn: Connection, rows: Sequence[UsageRow]) -> None:
    """Add these amounts to the present hour's sums."""
    # In one order everywhere, so that two gateways never wait for each other's rows in a circle.
    ordered = sorted(rows, key=lambda row: (row.tenant, row.model, row.digest or ""))
    await conn.executemany(
        "insert into usage (hour, tenant, model, digest, requests, prompt_tokens, completion_tokens)"
        " values (date_trunc('hour', clock_timestamp()), $1, $2, $3, $4, $5, $6)"
        " on conflict (hour, tenant, model, digest) do update set requests = usage.requests + excluded.requests,"
        " prompt_tokens = usage.prompt_tokens + excluded.prompt_tokens,"
        " completion_tokens = usage.completion_tokens + excluded.completion_tokens",
        [
            (
                row.tenant,
                row.model,
                b"" if row.digest is None else digest_bytes(row.digest),
                row.requests,
                row.prompt_tokens,
                row.completion_tokens,
            )
            for row in ordered
        ],
    )


async def read_usage(conn: Connection, tenant: str, since: datetime, limit: int = 1000) -> list[UsageRow]:
    """The tenant's sums from `since` on, newest hour first."""
    rows = await conn.fetch(
        "select hour, tenant, model, digest, requests, prompt_tokens, completion_tokens from usage"
        " where tenant = $1 and hour >= date_trunc('hour', $2::timestamptz) order by hour desc, model, digest limit $3",
        tenant,
        since,
        limit,
    )
    return [
        UsageRow(**fields_of(row, digest=digest_from_bytes(row["digest"]) if row["digest"] else None)) for row in rows
    ]
