"""Engines and cold loads, to look at."""

from typing import Any

from fastapi import APIRouter

from openmint_gateway.control.parts import Parts, Reader
from openmint_gateway.fleet import EngineSeen

router = APIRouter(prefix="/v1", tags=["engines"])


@router.get("/engines")
async def list_engines(parts: Parts, _: Reader) -> list[EngineSeen]:
    """The engines that are alive, as this gateway sees them. Addresses are not told: engines are private."""
    return parts.fleet.engines()


@router.get("/loads")
async def list_loads(parts: Parts, caller: Reader) -> list[dict[str, Any]]:
    """The tenant's cold loads under way."""
    found: list[dict[str, Any]] = []
    for base in await parts.bases.all():
        found += await parts.fleet.loads(base, caller.tenant)
    return found
