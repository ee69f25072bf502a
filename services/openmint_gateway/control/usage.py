"""What the tenant has used."""

from datetime import UTC, datetime, timedelta

from fastapi import APIRouter
from pydantic import AwareDatetime

from openmint.catalog import usage
from openmint.catalog.usage import UsageRow
from openmint_gateway.control.parts import Parts, Reader

router = APIRouter(prefix="/v1/usage", tags=["usage"])


@router.get("")
async def read_usage(parts: Parts, caller: Reader, since: AwareDatetime | None = None) -> list[UsageRow]:
    """Requests and tokens by hour, model and revision; the last day where nothing else is said."""
    start = since or datetime.now(UTC) - timedelta(days=1)
    async with parts.catalog.connection() as conn:
        return await usage.read_usage(conn, caller.tenant, start)
