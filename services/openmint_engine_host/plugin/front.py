"""The ASGI middleware in front of vLLM's OpenAI server (`--middleware`).

Only the routes named here exist. An inference request passes when its key is right, its model is the base or an
adapter that is on this engine, and there is room; else it is answered before vLLM sees it. `/openmint/*` is in
`commands.py`.
"""

import hmac
import json
from typing import Any, cast

from openmint.engines.protocol import BOOT_HEADER, REVISION_HEADER, TENANT_HEADER, VERDICT_HEADER
from openmint_engine_host.plugin import asgi
from openmint_engine_host.plugin.admission import BASE_DIGEST, Admission, Refusal, Verdict
from openmint_engine_host.plugin.answers import AnswerBroken, AnswerWatch, WatchedAnswer
from openmint_engine_host.plugin.commands import CommandRefused, Commands
from openmint_engine_host.plugin.front_settings import FrontSettings
from openmint_engine_host.plugin.versions import open_version

INFERENCE = {("POST", "/v1/chat/completions"), ("POST", "/v1/completions")}
NAMES_A_MODEL = INFERENCE | {("POST", "/tokenize")}
WITH_KEY = NAMES_A_MODEL | {("GET", "/v1/models"), ("GET", "/metrics")}
OPEN = {("GET", "/health")}

COMMAND_PREFIX = "/openmint/"
RETRY_AFTER_S = 1
NOBODY = "_"


class EngineFront:
    """Stands between the network and vLLM."""

    def __init__(self, app: asgi.App) -> None:
        self._app = app
        self._settings = settings = FrontSettings.read()
        self._admission = Admission(settings.base, settings.max_running, settings.margin, settings.tenant_share)
        self._watch = AnswerWatch(self._admission)
        version = open_version()
        version.watch_answers(lambda name, is_finite: self._watch.note(name, is_finite=is_finite))
        self._commands = Commands(self._admission, version, settings.boot_id, self._watch)
        self._boot = (BOOT_HEADER, settings.boot_id)

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        else:
            await self._http(scope, receive, asgi.with_headers(send, [self._boot]))

    async def _http(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        route = (str(scope["method"]), str(scope["path"]))
        try:
            if route in OPEN:
                await self._app(scope, receive, send)
            elif route[1].startswith(COMMAND_PREFIX):
                await self._command(scope, receive, send)
            elif route not in WITH_KEY:
                await asgi.refuse(send, 404, "not_found", "there is no such route on an engine")
            elif not _same(asgi.bearer(scope), self._settings.inference_key):
                await asgi.refuse(send, 401, "unauthorised", "the engine's key is missing or wrong")
            elif route in NAMES_A_MODEL:
                await self._inference(route, scope, receive, send)
            else:
                await self._app(scope, receive, asgi.with_headers(send, [(REVISION_HEADER, BASE_DIGEST)]))
        except asgi.BodyTooLarge:
            limit = self._settings.max_body_bytes
            await asgi.refuse(send, 413, "too_large", f"the body is above {limit} bytes", [("connection", "close")])
        except (asgi.ClientGone, AnswerBroken):
            return  # An answer that had begun ends without its end, which tells its reader that it is none.

    async def _inference(
        self, route: tuple[str, str], scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send
    ) -> None:
        body = await asgi.read_body(receive, self._settings.max_body_bytes)
        request = _json_object(body)
        model = request.get("model") if request is not None else None
        if request is None or not isinstance(model, str) or not model:
            await asgi.refuse(send, 400, "bad_request", "the body must be a JSON object whose `model` is a text")
            return
        tenant = asgi.header(scope, TENANT_HEADER) or NOBODY
        ticket = self._admission.admit(model, tenant, _sequences(request) if route in INFERENCE else 0)
        if isinstance(ticket, Refusal):
            await _send_verdict(send, ticket.verdict, ticket.reason)
            return
        name = "" if model == self._settings.base else model
        answer = WatchedAnswer(asgi.with_headers(send, [(REVISION_HEADER, ticket.digest)]), self._watch, name)
        try:
            await self._app(scope, asgi.replay(body, receive), answer)
        finally:
            self._admission.release(ticket)
        if answer.is_doubtful:
            await self._commands.look_into(name, scope["app"].state)

    async def _command(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if not _same(asgi.bearer(scope), self._settings.host_key):
            await asgi.refuse(send, 404, "not_found", "there is no such route on an engine")
            return
        body = _json_object(await asgi.read_body(receive, self._settings.max_body_bytes) or b"{}")
        name = scope["path"].removeprefix(COMMAND_PREFIX)
        try:
            result = await self._commands.run(scope["method"], name, body or {}, scope["app"].state)
        except CommandRefused as refused:
            await asgi.refuse(send, refused.status, refused.code, str(refused))
        else:
            await asgi.answer(send, 200, result)


def _same(given: str, wanted: str) -> bool:
    return bool(wanted) and hmac.compare_digest(given.encode(), wanted.encode())


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return cast(dict[str, Any], value) if isinstance(value, dict) else None


def _sequences(request: dict[str, Any]) -> int:
    """How many sequences vLLM will run for this request: prompts times `n`. Odd values count as one."""
    n = request.get("n")
    n = n if isinstance(n, int) and n > 0 else 1
    prompt = request.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        n *= len(cast(list[object], prompt))
    return n


async def _send_verdict(send: asgi.Send, verdict: Verdict, reason: str) -> None:
    headers = [(VERDICT_HEADER, verdict), ("retry-after", str(RETRY_AFTER_S))]
    await asgi.refuse(send, 503, verdict, reason, headers)
