"""Stands before the control API: input limits, request id, the log line, and errors outside the framework."""

import time

import orjson
import structlog

from openmint.errors import OpenmintError
from openmint.identifiers import new_id
from openmint_gateway.asgi_input import (
    MAX_BODY_BYTES,
    AsgiApp,
    ClientLeft,
    Message,
    Receive,
    Scope,
    Send,
    check_declared_length,
    check_head,
    read_body,
    replay,
)
from openmint_gateway.problems import PROBLEM_TYPE, as_openmint_error, error_headers, problem_body

log = structlog.get_logger()

UPLOAD_PATH = "/v1/data"
QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds; their lines would drown the others."""


class ControlFront:
    """ASGI middleware around the control API."""

    def __init__(self, inner: AsgiApp, upload_bytes_max: int) -> None:
        self._inner = inner
        self._upload_bytes_max = upload_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        request_id = str(new_id())
        scope.setdefault("state", {})["request_id"] = request_id
        started_s = time.monotonic()
        status = 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-openmint-request-id", request_id.encode())]
            await send(message)

        try:
            await self._inner(scope, await self._checked(scope, receive), send_on)
        except ClientLeft:
            return
        except Exception as error:
            if not isinstance(error, OpenmintError):
                log.exception("request.crashed", request_id=request_id)
            if status:
                raise
            await _answer(as_openmint_error(error), request_id, send_on)
        finally:
            if scope["path"] not in QUIET:
                log.info(
                    "request.handled",
                    method=scope["method"],
                    route=scope["path"][:200],
                    request_id=request_id,
                    status=status,
                    total_ms=round((time.monotonic() - started_s) * 1000, 1),
                )

    async def _checked(self, scope: Scope, receive: Receive) -> Receive:
        check_head(scope)
        if scope["path"] == UPLOAD_PATH and scope["method"] in ("POST", "PUT"):
            # Read by the route itself, which counts while it reads.
            check_declared_length(scope, self._upload_bytes_max)
            return receive
        check_declared_length(scope, MAX_BODY_BYTES)
        if scope["method"] in ("GET", "HEAD", "DELETE", "OPTIONS"):
            return receive
        return replay(await read_body(receive), receive)


async def _answer(error: OpenmintError, request_id: str, send: Send) -> None:
    body = orjson.dumps(problem_body(error, request_id))
    headers = [(b"content-type", PROBLEM_TYPE), (b"content-length", str(len(body)).encode()), *error_headers(error)]
    await send({"type": "http.response.start", "status": error.http_status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
