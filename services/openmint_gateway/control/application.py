"""The control API put together: routers, and every error as problem+json."""

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from openmint.errors import BadRequest, NotFound, OpenmintError
from openmint_gateway.control import aliases, bases, data, engines, health, jobs, keys, policies, revisions, usage
from openmint_gateway.control.parts import ControlParts
from openmint_gateway.problems import MethodNotAllowed, as_openmint_error, error_headers, problem_body
from openmint_gateway.train_request import schema_error

log = structlog.get_logger()

ROUTERS = (
    policies.router,
    revisions.router,
    aliases.router,
    jobs.router,
    data.router,
    bases.router,
    engines.router,
    keys.router,
    usage.router,
    health.router,
)


def make_control_api(parts: ControlParts | None) -> FastAPI:
    """The application; without parts it can only describe itself."""
    api = FastAPI(
        title="openmint",
        version="1",
        description="Managed LoRA post-training and serving. Errors are problem+json; inference errors are OpenAI's.",
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    if parts is not None:
        api.state.parts = parts
    for router in ROUTERS:
        api.include_router(router)
    api.add_exception_handler(OpenmintError, _on_error)
    api.add_exception_handler(RequestValidationError, _on_invalid)
    api.add_exception_handler(HTTPException, _on_http)
    api.add_exception_handler(Exception, _on_crash)
    return api


def problem(error: OpenmintError, request: Request) -> JSONResponse:
    """The error as a response."""
    headers = {key.decode(): value.decode() for key, value in error_headers(error)}
    body = problem_body(error, getattr(request.state, "request_id", ""))
    return JSONResponse(body, error.http_status, headers, media_type="application/problem+json")


async def _on_error(request: Request, error: Exception) -> Response:
    return problem(as_openmint_error(error), request)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problem(schema_error(error.errors(), within="body"), request)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return problem(NotFound(f"there is no route {request.url.path[:200]}"), request)
    if error.status_code == 405:
        return problem(MethodNotAllowed(), request)
    return problem(BadRequest(str(error.detail)), request)


async def _on_crash(request: Request, error: Exception) -> Response:
    log.exception("request.crashed", request_id=getattr(request.state, "request_id", ""), exc_info=error)
    return problem(as_openmint_error(error), request)
