"""Inference over HTTP: a raw ASGI application in front of the control API.

Bytes pass through. What is added: who asks, which revision that means (fixed here, once), the way to an engine, and
the watch for a client that hangs up, which stops the engine's work wherever the request is by then.
"""

import asyncio
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

import orjson
import structlog

from openmint.catalog.resolution import Resolution
from openmint.errors import BadRequest, EngineFailed, NotFound, OpenmintError, Overloaded
from openmint.identifiers import BaseModelName, PolicyModel, new_id, parse_model
from openmint.tracing import begin, begin_trace
from openmint_gateway.asgi_input import (
    MAX_BODY_BYTES,
    MAX_WAIT_HEADER,
    AsgiApp,
    ClientLeft,
    Receive,
    Scope,
    Send,
    check_declared_length,
    check_head,
    header,
    read_body,
)
from openmint_gateway.base_models import BaseModels
from openmint_gateway.cache_salt import CacheSalts
from openmint_gateway.dispatcher import Dispatched, Dispatcher, Order
from openmint_gateway.event_splitter import EventSplitter
from openmint_gateway.exchange import Exchange
from openmint_gateway.hang_up import Comments, WhileClientStays
from openmint_gateway.inference_fields import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    Check,
    InferenceRequest,
    read_inference_request,
)
from openmint_gateway.key_ring import Caller, KeyRing
from openmint_gateway.metrics import GatewayMetrics
from openmint_gateway.model_list import ModelList
from openmint_gateway.problems import (
    Headers,
    JsonObject,
    MethodNotAllowed,
    as_openmint_error,
    error_headers,
    openai_error,
    openai_error_event,
)
from openmint_gateway.request_log import RequestLog
from openmint_gateway.resolver import Resolver
from openmint_gateway.usage_meter import UsageMeter

log = structlog.get_logger()

WAITING_COMMENT = b": waiting\n\n"
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class _Route:
    fields: Mapping[str, Check]
    required: str


ROUTES = {
    "/v1/chat/completions": _Route(CHAT_FIELDS, "messages"),
    "/v1/completions": _Route(COMPLETION_FIELDS, "prompt"),
}
MODELS = "/v1/models"


class HotPath:
    """`/v1/chat/completions`, `/v1/completions` and `/v1/models`; everything else goes to `inner`."""

    def __init__(
        self,
        inner: AsgiApp,
        *,
        keys: KeyRing,
        resolver: Resolver,
        bases: BaseModels,
        models: ModelList,
        dispatcher: Dispatcher,
        salts: CacheSalts,
        usage: UsageMeter,
        metrics: GatewayMetrics,
        pool: str,
        status_hold_s: float,
        comment_every_s: float,
        request_log: RequestLog,
    ) -> None:
        self._inner = inner
        self._keys = keys
        self._resolver = resolver
        self._bases = bases
        self._models = models
        self._dispatcher = dispatcher
        self._salts = salts
        self._usage = usage
        self._metrics = metrics
        self._pool = pool
        self._status_hold_s = status_hold_s
        self._comment_every_s = comment_every_s
        self._log = request_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        path: str = scope["path"]
        if path not in ROUTES and path != MODELS and not path.startswith(MODELS + "/"):
            await self._inner(scope, receive, send)
            return
        exchange = Exchange(path if path in ROUTES else MODELS, _request_id(scope), time.monotonic())
        with begin_trace(
            "gateway.request", parent=header(scope, b"traceparent"), request_id=exchange.request_id
        ) as span:
            try:
                await self._serve(exchange, scope, receive, send)
            except ClientLeft:
                exchange.outcome = "hung_up"
            except asyncio.CancelledError:
                exchange.outcome = "cut_off"
                raise
            except Exception as error:
                await self._answer_error(exchange, error, send)
            finally:
                self._close(exchange)
                exchange.tell(span)

    async def _serve(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        check_head(scope)
        expected = "POST" if exchange.route in ROUTES else "GET"
        if scope["method"] != expected:
            raise MethodNotAllowed(f"{exchange.route} takes {expected} alone")
        check_declared_length(scope, MAX_BODY_BYTES)
        caller = exchange.caller = await self._keys.authenticate(header(scope, b"authorization"))
        caller.need("infer")
        exchange.wait_s = _wait_s(scope)
        if exchange.route == MODELS:
            await self._serve_models(exchange, caller, scope, send)
            return
        route = ROUTES[exchange.route]
        request = read_inference_request(await read_body(receive), route.fields, route.required)
        async with WhileClientStays(receive):
            await self._infer(exchange, caller, request, send)

    async def _infer(self, exchange: Exchange, caller: Caller, request: InferenceRequest, send: Send) -> None:
        exchange.model, exchange.is_stream = request.model, request.is_stream
        order = await self._admit(exchange, caller, request)
        if request.is_stream:
            await self._stream(exchange, order, request, send)
        else:
            await self._answer_whole(exchange, order, send)

    async def _admit(self, exchange: Exchange, caller: Caller, request: InferenceRequest) -> Order:
        """Fix the revision. From here on it does not change for this request."""
        name = parse_model(request.model)
        revision: Resolution | None = None
        match name:
            case BaseModelName(base):
                base_model = await self._bases.find(base)
                exchange.policy, exchange.revision = base, "base"
                exchange.fingerprint = f"{base}@{base_model.digest}"
            case PolicyModel(policy):
                if policy.tenant != caller.tenant:
                    # In the words of a policy that does not exist: nothing of another tenant is visible.
                    raise NotFound(f"there is no policy {policy}", field="model")
                resolved = await self._resolver.resolve(name)
                revision, base = resolved.revision, resolved.revision.base
                exchange.is_stale = resolved.is_stale
                exchange.policy, exchange.revision = str(policy), revision.digest
                exchange.fingerprint = f"{policy}@{revision.digest}"
        return Order(
            tenant=caller.tenant,
            base=base,
            pool=self._pool,
            policy=exchange.policy,
            revision=revision,
            path=exchange.route,
            body={**request.body, "cache_salt": self._salts.of(caller.tenant)},
            sequences=request.sequences,
            prompt_cost=request.prompt_cost,
            asked_tokens=request.asked_tokens,
            wait_s=exchange.wait_s,
        )

    async def _answer_whole(self, exchange: Exchange, order: Order, send: Send) -> None:
        dispatched = await self._dispatcher.send(order, exchange.journey)
        try:
            # Read whole before the status line, so that an engine's death is a 502 and never half an answer.
            with begin("gateway.answer"):
                body = _read_answer(await dispatched.answer.read())
            usage: JsonObject = body.get("usage") or {}
            exchange.prompt_tokens = int(usage.get("prompt_tokens") or 0)
            exchange.completion_tokens = int(usage.get("completion_tokens") or 0)
            dispatched.ended(exchange.completion_tokens)
        finally:
            dispatched.close()
        body["model"] = exchange.model
        body["system_fingerprint"] = exchange.fingerprint
        await _respond(send, exchange, 200, b"application/json", orjson.dumps(body))

    async def _stream(self, exchange: Exchange, order: Order, request: InferenceRequest, send: Send) -> None:
        async def comment() -> None:
            await self._send_stream(exchange, WAITING_COMMENT, send)

        comments = Comments(comment, self._status_hold_s, self._comment_every_s)
        try:
            dispatched = await self._dispatcher.send(order, exchange.journey)
        except BaseException:
            await comments.stop()
            raise
        try:
            await comments.stop()
            await self._copy(exchange, dispatched, request, send)
        finally:
            dispatched.close()

    async def _copy(self, exchange: Exchange, dispatched: Dispatched, request: InferenceRequest, send: Send) -> None:
        splitter = EventSplitter(
            dispatched.placement.adapter_name,
            request.model,
            exchange.fingerprint,
            wants_usage=request.wants_usage,
        )
        tally, waiting = splitter.tally, begin("gateway.first_token")
        try:
            async for chunk in dispatched.answer.chunks():
                events = splitter.feed(chunk)
                if tally.events and exchange.first_token_ms is None:
                    dispatched.started()
                    waiting.end()
                    exchange.first_token_ms = (time.monotonic() - exchange.started_s) * 1000
                if events:
                    await self._send_stream(exchange, events, send)
            if not tally.is_done and not tally.error:
                raise EngineFailed("the engine ended the stream before it was complete")
            dispatched.ended(tally.completion_tokens or tally.events)
        finally:
            waiting.end("no_token")
            exchange.prompt_tokens, exchange.completion_tokens = tally.prompt_tokens, tally.completion_tokens
            if not tally.completion_tokens:
                # Broken off before the engine's own count: every event carried about one token.
                exchange.completion_tokens = max(0, tally.events - 1)
            if tally.error:
                exchange.outcome, exchange.error_code = "broken", "engine_error"
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_stream(self, exchange: Exchange, data: bytes, send: Send) -> None:
        if not exchange.has_started:
            exchange.has_started, exchange.status = True, 200
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),
                *exchange.headers(),
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _answer_error(self, exchange: Exchange, error: Exception, send: Send) -> None:
        known = as_openmint_error(error)
        if not isinstance(error, OpenmintError):
            log.exception("request.crashed", request_id=exchange.request_id)
        exchange.error_code = known.code
        if exchange.has_started:
            exchange.outcome = "broken"
            await send({"type": "http.response.body", "body": openai_error_event(known), "more_body": False})
            return
        exchange.outcome = "refused" if known.http_status < 500 else "failed"
        if isinstance(known, Overloaded):
            self._metrics.refused(known)
        body = orjson.dumps(openai_error(known))
        await _respond(send, exchange, known.http_status, b"application/json", body, error_headers(known))

    async def _serve_models(self, exchange: Exchange, caller: Caller, scope: Scope, send: Send) -> None:
        name = scope["path"].removeprefix(MODELS).strip("/")
        body = await (self._models.one(caller.tenant, name) if name else self._models.page(caller.tenant, scope))
        await _respond(send, exchange, 200, b"application/json", orjson.dumps(body))

    def _close(self, exchange: Exchange) -> None:
        """Count it and say it in one line."""
        total_ms = (time.monotonic() - exchange.started_s) * 1000
        caller = exchange.caller
        if caller is not None and exchange.policy and exchange.completion_tokens:
            digest = exchange.revision if exchange.revision != "base" else None
            self._usage.add(caller.tenant, exchange.policy, digest, exchange.prompt_tokens, exchange.completion_tokens)
        journey = exchange.journey
        self._metrics.answered(exchange.route, exchange.outcome, total_ms, exchange.first_token_ms)
        self._metrics.waited(journey.load_ms, journey.queue_ms, was_cold=journey.was_cold)
        self._log.say(
            route=exchange.route,
            request_id=exchange.request_id,
            tenant=caller.tenant if caller else None,
            key_id=caller.key_id if caller else None,
            model=exchange.model[:256],
            revision=exchange.revision,
            is_stream=exchange.is_stream,
            is_stale=exchange.is_stale,
            engine=journey.engine,
            was_cold=journey.was_cold,
            load_ms=round(journey.load_ms, 1),
            queue_ms=round(journey.queue_ms, 1),
            sent_back=journey.sent_back,
            status=exchange.status,
            outcome=exchange.outcome,
            error_code=exchange.error_code,
            first_token_ms=None if exchange.first_token_ms is None else round(exchange.first_token_ms, 1),
            total_ms=round(total_ms, 1),
            prompt_tokens=exchange.prompt_tokens,
            completion_tokens=exchange.completion_tokens,
        )


def _wait_s(scope: Scope) -> float | None:
    given = header(scope, MAX_WAIT_HEADER)
    if not given:
        return None
    try:
        wait_s = float(given)
    except ValueError:
        wait_s = math.nan
    if not 0 < wait_s < math.inf:
        name = MAX_WAIT_HEADER.decode()
        raise BadRequest(f"{name} must be a number of seconds above 0", field=name)
    return wait_s


def _request_id(scope: Scope) -> str:
    given = header(scope, b"x-request-id")
    return given if _REQUEST_ID.fullmatch(given) else str(new_id())


def _read_answer(data: bytes) -> JsonObject:
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise EngineFailed("the engine's answer is not JSON") from error
    if not isinstance(body, dict):
        raise EngineFailed("the engine's answer is not an object")
    return body


async def _respond(
    send: Send, exchange: Exchange, status: int, kind: bytes, body: bytes, extra: Headers | None = None
) -> None:
    exchange.status, exchange.has_started = status, True
    headers = [
        (b"content-type", kind),
        (b"content-length", str(len(body)).encode()),
        *exchange.headers(),
        *(extra or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
