"""Is this process alive, is it able to work, and what does it count."""

from fastapi import APIRouter, Response

from openmint.health import Check, run_checks
from openmint_gateway.control.parts import ControlParts, Parts

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"description": "A part that is needed does not answer"}})
async def readyz(parts: Parts, response: Response) -> dict[str, bool]:
    """The catalogue and the bus answer. Known names are served without them; new work is not taken."""
    answers = await run_checks(health_checks(parts))
    if not all(answers.values()):
        response.status_code = 503
    return answers


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(parts: Parts) -> Response:
    """Prometheus metrics of this process."""
    return Response(parts.metrics.page(), media_type="text/plain; version=0.0.4")


def health_checks(parts: ControlParts) -> dict[str, Check]:
    """What this process needs to take in new work."""
    return {"catalog": lambda: _catalog_answers(parts), "bus": lambda: _bus_answers(parts)}


async def _catalog_answers(parts: ControlParts) -> bool:
    async with parts.catalog.connection() as conn:
        return await conn.fetchval("select true") is True


async def _bus_answers(parts: ControlParts) -> bool:
    return parts.bus.nc.is_connected
