"""One request's way to an engine: a verdict, a load, a turn, and asking, until an engine answers with the right
revision or the deadline passes. No byte has gone to the caller while this runs, so all of it may be tried again.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

import orjson
import structlog

from openmint import tracing
from openmint.catalog.resolution import Resolution
from openmint.clock import Clock
from openmint.engines.protocol import REVISION_HEADER, TENANT_HEADER, VERDICT_HEADER
from openmint.engines.residency import Placement
from openmint.errors import BadRequest, EngineFailed, NoEngine, Overloaded
from openmint.identifiers import new_id
from openmint_gateway.engine_client import EngineAnswer, EngineClient, EngineUnreachable
from openmint_gateway.problems import JsonObject
from openmint_gateway.seats import Request
from openmint_gateway.waiting_room import LATE_RETRY_AFTER_S, Seat, WaitingRoom

log = structlog.get_logger()

BASE_REVISION = "base"
"""What an engine calls the revision of an answer without an adapter."""

LOST_ASKED_AGAIN = 1
"""How often a request is asked again that an engine took and lost: a request that kills engines must not walk on."""

LOST_BY_ONE_BOOT = 2
"""How often one boot may lose it before that: connections kept open from before its death fail without a word."""

UNREACHABLE_PAUSE_S = 0.1
MAX_ERROR_BYTES = 64 * 1024


class RefusedByEngine(BadRequest):
    """The engine refused the request."""

    code = "bad_request"


@dataclass(frozen=True, slots=True)
class Order:
    """A request that is ready for an engine. `revision` None asks the base model itself."""

    tenant: str
    base: str
    pool: str
    policy: str
    revision: Resolution | None
    path: str
    body: JsonObject
    sequences: int = 1
    prompt_cost: float = 0.0
    """What reading the prompt costs, in generated tokens."""
    asked_tokens: int | None = None
    wait_s: float | None = None
    """How long it waits for its first token, if the caller said so."""

    @property
    def expected_revision(self) -> str:
        """What the answer's revision header must say."""
        return BASE_REVISION if self.revision is None else self.revision.digest


@dataclass(slots=True)
class Journey:
    """What happened to a request on its way; grows while it is under way."""

    engine: str = ""
    load_ms: float = 0.0
    queue_ms: float = 0.0
    sent_back: int = 0
    was_cold: bool = False


class Loads(Protocol):
    """Cold loads."""

    def loaded(self, order: Order, deadline_s: float) -> AbstractAsyncContextManager[Placement]:
        """Have the revision loaded, and kept until the block ends.

        Raises: LoadTimeout, LoadFailed, Overloaded, NoEngine.
        """
        ...


class Dispatched:
    """An answer under way. Close it, whatever happens: the engine stops and its room goes to the next."""

    __slots__ = ("_has_started", "_seat", "_tokens", "answer", "placement")

    def __init__(self, answer: EngineAnswer, placement: Placement, seat: Seat) -> None:
        self.answer = answer
        self.placement = placement
        self._seat = seat
        self._has_started = False
        self._tokens: int | None = None

    def started(self) -> None:
        """Its first token is here."""
        if not self._has_started:
            self._has_started = True
            self._seat.started()

    def ended(self, tokens: int) -> None:
        """The engine has said all of it: so many tokens."""
        self._tokens = tokens

    def close(self) -> None:
        """Stop the engine's work on it, if there is any left."""
        self.answer.close()
        self._seat.leave(self._tokens)


class Dispatcher:
    """Brings requests to engines."""

    def __init__(
        self,
        loads: Loads,
        room: WaitingRoom,
        client: EngineClient,
        clock: Clock,
        *,
        engine_key: str,
        longest_wait_s: float,
    ) -> None:
        self._loads = loads
        self._room = room
        self._client = client
        self._clock = clock
        self._longest_wait_s = longest_wait_s
        self._headers_of_all = {
            "authorization": f"Bearer {engine_key}",
            "content-type": "application/json",
            # Compression would hold events back.
            "accept-encoding": "identity",
        }

    async def send(self, order: Order, journey: Journey) -> Dispatched:
        """The engine's answer, its head checked: status 200 and the revision that was asked for.

        Raises: QueueFull and WaitTooLong at once; LoadTimeout, LoadFailed, Overloaded, NoEngine, EngineFailed,
        RefusedByEngine.
        """
        wait_s = self._longest_wait_s if order.wait_s is None else min(order.wait_s, self._longest_wait_s)
        now_s = self._clock.monotonic_s()
        request = Request(
            order.tenant,
            "" if order.revision is None else order.revision.digest,
            order.sequences,
            now_s,
            now_s + wait_s,
            order.prompt_cost,
            order.asked_tokens,
        )
        seat = self._room.seat(order.base, order.pool, request)
        try:
            return await self._carry(order, journey, seat)
        except BaseException:
            seat.leave()
            raise

    async def _carry(self, order: Order, journey: Journey, seat: Seat) -> Dispatched:
        # What was loaded for this request stays until its engine has it: a place in the queue alone keeps nothing.
        async with AsyncExitStack() as kept:
            return await self._carry_on(order, journey, seat, kept)

    async def _carry_on(self, order: Order, journey: Journey, seat: Seat, kept: AsyncExitStack) -> Dispatched:
        may_go = seat.arrive()
        lost: list[UUID] = []
        while True:
            placement = await self._find(order, journey, seat, kept, may_go=may_go)
            try:
                answer = await self._ask(order, placement)
            except EngineUnreachable:
                may_go = await self._elsewhere(seat, placement)
            except _Lost as error:
                lost.append(placement.boot_id)
                most = LOST_BY_ONE_BOOT if error.may_be_stale else LOST_ASKED_AGAIN
                if len(set(lost)) > LOST_ASKED_AGAIN or len(lost) > most:
                    raise EngineFailed(error.detail) from error
                may_go = await self._elsewhere(seat, placement)
            except _SentBack as verdict:
                journey.sent_back += 1
                if verdict.is_absent:
                    may_go = await self._elsewhere(seat, placement)
                else:
                    may_go = seat.sent_back(placement, is_busy=True)
            else:
                seat.accepted()
                journey.engine = placement.engine
                return Dispatched(answer, placement, seat)

    async def _find(
        self, order: Order, journey: Journey, seat: Seat, kept: AsyncExitStack, *, may_go: bool
    ) -> Placement:
        """Where it goes now: after a load and a turn, if need be."""
        while True:
            if may_go:
                placement = seat.placement()
                if placement is not None:
                    return placement
                may_go = seat.sent_back(None, is_busy=False)
                continue
            started_s = self._clock.monotonic_s()
            if started_s >= seat.request.deadline_s:
                raise self._too_late(order, seat)
            if not seat.is_loading:
                try:
                    with tracing.begin("gateway.wait", waits_for="room"):
                        await seat.turn()
                finally:
                    journey.queue_ms += (self._clock.monotonic_s() - started_s) * 1000
                may_go = not seat.is_loading
            elif order.revision is None:
                # There is no load to wait for: ask again those that are known, until the feed drops them.
                if not self._room.has_engine(order.base, order.pool):
                    raise NoEngine(f"no engine serves base model {order.base} now", retry_after_s=5.0)
                may_go = seat.resident()
            else:
                journey.was_cold = True
                try:
                    await kept.aclose()
                    await kept.enter_async_context(self._loads.loaded(order, seat.request.deadline_s - started_s))
                finally:
                    journey.load_ms += (self._clock.monotonic_s() - started_s) * 1000
                may_go = seat.resident()

    async def _elsewhere(self, seat: Seat, placement: Placement) -> bool:
        may_go = seat.sent_back(placement, is_busy=False)
        if seat.is_loading:
            await asyncio.sleep(UNREACHABLE_PAUSE_S)  # Nowhere else: the feed must tell of it first.
        return may_go

    def _too_late(self, order: Order, seat: Seat) -> Overloaded:
        return Overloaded(
            f"no engine of base model {order.base} had room within {seat.request.may_wait_s:.1f} s",
            retry_after_s=LATE_RETRY_AFTER_S,
        )

    async def _ask(self, order: Order, placement: Placement) -> EngineAnswer:
        body = orjson.dumps({**order.body, "model": placement.adapter_name})
        try:
            with tracing.begin("gateway.ask", engine=placement.engine):
                answer = await self._client.post(placement.url + order.path, body, self._headers(order))
        except EngineUnreachable:
            raise
        except EngineFailed as error:
            raise _Lost(error.detail, may_be_stale=True) from error
        try:
            await _check_head(order, placement, answer)
        except BaseException:
            answer.close()
            raise
        return answer

    def _headers(self, order: Order) -> Mapping[str, str]:
        return {
            **self._headers_of_all,
            TENANT_HEADER: order.tenant,
            # Not the caller's id: an engine takes this as its own, and two of the same would collide there.
            "x-request-id": str(new_id()),
            **tracing.trace_headers(),
        }


class _SentBack(Exception):
    """The engine did nothing: it is busy, or does not have the adapter."""

    def __init__(self, *, is_absent: bool) -> None:
        self.is_absent = is_absent
        super().__init__()


class _Lost(EngineFailed):
    """The engine took the request and broke before it said anything; or (`may_be_stale`) was dead before it came."""

    def __init__(self, detail: str, *, may_be_stale: bool = False) -> None:
        self.may_be_stale = may_be_stale
        super().__init__(detail)


async def _check_head(order: Order, placement: Placement, answer: EngineAnswer) -> None:
    told = answer.headers.get(REVISION_HEADER)
    if answer.status == 503:
        verdict = answer.headers.get(VERDICT_HEADER)
        if verdict == "suspect":
            # Not asked again and again: a request that spoils engines must not walk through all of them.
            raise _Lost(f"engine {placement.engine} gave an answer that is not made of numbers; it is withheld")
        raise _SentBack(is_absent=verdict == "absent" and order.revision is not None)
    if answer.status == 404 and told is None:
        # An engine without this adapter's name: it has restarted, and the feed has not told yet.
        raise _SentBack(is_absent=order.revision is not None)
    if told != order.expected_revision:
        log.error(
            "answer.wrong_revision", engine=placement.engine, expected=order.expected_revision, told=str(told)[:100]
        )
        raise EngineFailed("an engine answered with another revision than the one asked for; nothing of it was used")
    if answer.status == 200:
        return
    if answer.status in (400, 413, 422):
        raise RefusedByEngine(_engine_message(await answer.read(), placement, order))
    raise EngineFailed(f"engine {placement.engine} answered with status {answer.status}")


def _engine_message(body: bytes, placement: Placement, order: Order) -> str:
    """What the engine says is wrong, without the names that it uses inside."""
    try:
        content = orjson.loads(body[:MAX_ERROR_BYTES])
        error = content.get("error", content)
        message = str(error.get("message", "")) if isinstance(error, dict) else str(error)
    except (orjson.JSONDecodeError, AttributeError):
        message = ""
    message = message.replace(placement.adapter_name, order.policy)
    return message[:1000] or "the engine refused the request"
