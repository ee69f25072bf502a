"""The control port: `EngineHost` over HTTP, for the scheduler (control key) and for readers of the list (read key)."""

import hmac
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, TypeVar

import structlog
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from openmint.engines.protocol import AttachRequest, CommandStamp, EngineState
from openmint.errors import BadRequest, OpenmintError, Unauthorised
from openmint.identifiers import Digest
from openmint.tracing import TRACEPARENT, within
from openmint_engine_host.host import EngineHost

log = structlog.get_logger()

MAX_BODY_BYTES = 1 << 20

B = TypeVar("B", bound=BaseModel)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Stamped(_Body):
    epoch: int = Field(ge=0)
    command: int = Field(ge=0)

    @property
    def stamp(self) -> CommandStamp:
        """Who commands."""
        return CommandStamp(self.epoch, self.command)


class StageBody(_Stamped):
    """`POST /control/stage` and `/control/unstage`."""

    digest: Digest


class AttachItem(_Body):
    """One revision to attach."""

    digest: Digest
    label: str = Field(pattern=r"^[a-z0-9_-]{1,63}/[a-z0-9_-]{1,63}$")
    traceparent: str | None = Field(default=None, max_length=55)


class AttachBody(_Stamped):
    """`POST /control/attach`."""

    requests: list[AttachItem] = Field(max_length=1000)


class RemoveBody(_Stamped):
    """`POST /control/remove`."""

    adapter_name: str = Field(max_length=300)
    timeout_s: float = Field(default=30.0, ge=0, le=600)


class RestartBody(_Stamped):
    """`POST /control/restart`."""

    reason: str = Field(min_length=1, max_length=500)


class ExamineBody(_Stamped, AttachItem):
    """`POST /control/examine`."""


class ProbeBody(_Body):
    """`POST /control/probe`; an empty name is the base."""

    adapter_name: str = Field(default="", max_length=300)


class ControlServer:
    """Routes of the control port."""

    def __init__(self, host: EngineHost, control_key: str, read_key: str) -> None:
        self._host = host
        self._control_keys = (control_key,)
        self._read_keys = (read_key, control_key)

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_answer_errors])
        app.router.add_get("/control/residents", self._guarded(self._residents, self._read_keys))
        app.router.add_get("/control/state", self._guarded(self._state, self._control_keys))
        for name, handler in {
            "stage": self._stage,
            "attach": self._attach,
            "remove": self._remove,
            "unstage": self._unstage,
            "restart": self._restart,
            "examine": self._examine,
            "probe": self._probe,
        }.items():
            app.router.add_post(f"/control/{name}", self._guarded(handler, self._control_keys))
        return app

    def _guarded(
        self, handler: Callable[[web.Request], Awaitable[dict[str, Any]]], keys: tuple[str, ...]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def guarded(request: web.Request) -> web.Response:
            scheme, _, token = request.headers.get("authorization", "").partition(" ")
            allowed = [key for key in keys if key and hmac.compare_digest(token.encode(), key.encode())]
            if scheme.lower() != "bearer" or not allowed:
                raise Unauthorised("the control key is missing or wrong")
            with within(request.headers.get(TRACEPARENT)):
                return web.json_response(await handler(request))

        return guarded

    async def _state(self, request: web.Request) -> dict[str, Any]:
        return state_as_json(await self._host.state())

    async def _residents(self, request: web.Request) -> dict[str, Any]:
        return self._host.resident_list()

    async def _stage(self, request: web.Request) -> dict[str, Any]:
        body = await _read(request, StageBody)
        return asdict(await self._host.stage(body.stamp, body.digest))

    async def _attach(self, request: web.Request) -> dict[str, Any]:
        body = await _read(request, AttachBody)
        requests = [AttachRequest(item.digest, item.label, item.traceparent) for item in body.requests]
        return {"results": [asdict(result) for result in await self._host.attach(body.stamp, requests)]}

    async def _remove(self, request: web.Request) -> dict[str, Any]:
        body = await _read(request, RemoveBody)
        return {"removed": await self._host.remove(body.stamp, body.adapter_name, body.timeout_s)}

    async def _unstage(self, request: web.Request) -> dict[str, Any]:
        body = await _read(request, StageBody)
        await self._host.unstage(body.stamp, body.digest)
        return {}

    async def _restart(self, request: web.Request) -> dict[str, Any]:
        body = await _read(request, RestartBody)
        await self._host.restart(body.stamp, body.reason)
        return {}

    async def _examine(self, request: web.Request) -> dict[str, Any]:
        body = await _read(request, ExamineBody)
        return asdict(await self._host.examine(body.stamp, AttachRequest(body.digest, body.label)))

    async def _probe(self, request: web.Request) -> dict[str, Any]:
        body = await _read(request, ProbeBody)
        return {"logprob": await self._host.probe(body.adapter_name)}


def state_as_json(state: EngineState) -> dict[str, Any]:
    """An engine's state as plain JSON values."""
    return {**asdict(state), "boot_id": str(state.boot_id), "capabilities": sorted(state.capabilities)}


async def _read(request: web.Request, model: type[B]) -> B:
    try:
        return model.model_validate_json(await request.read())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"{field or 'the body'}: {first['msg']}", field=field or None) from error


@web.middleware
async def _answer_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except OpenmintError as error:
        body: dict[str, Any] = {"code": error.code, "detail": error.detail}
        if error.retry_after_s is not None:
            body["retry_after_s"] = error.retry_after_s
        return web.json_response(body, status=error.http_status)
    except web.HTTPException as error:
        return web.json_response({"code": "not_found", "detail": error.reason}, status=error.status)
    except Exception:
        reference = uuid.uuid4().hex
        log.exception("control.failed", path=request.path, reference=reference)
        return web.json_response({"code": "internal", "detail": f"see the log for {reference}"}, status=500)
