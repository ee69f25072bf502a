"""One request's way to an engine: choose, load, wait, ask, and be sent back, until an engine answers with the right
revision or the deadline passes. No byte has gone to the caller while this runs, so all of it may be tried again.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Protocol

import orjson
import structlog

from openmint.catalog.resolution import Resolution
from openmint.clock import Clock
from openmint.engines.protocol import REVISION_HEADER, TENANT_HEADER, VERDICT_HEADER
from openmint.engines.residency import Placement
from openmint.errors import BadRequest, EngineFailed, NoEngine, Overloaded
from openmint.identifiers import new_id
from openmint_gateway.engine_client import EngineAnswer, EngineClient, EngineUnreachable
from openmint_gateway.problems import JsonObject
from openmint_gateway.waiting_room import BUSY_RETRY_AFTER_S, WaitingRoom

log = structlog.get_logger()

BASE_REVISION = "base"
"""What an engine calls the revision of an answer without an adapter."""

LOST_ASKED_AGAIN = 1
"""How often a request is asked again that an engine took and lost: a request that kills engines must not walk on."""

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
    cost: int

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


class Placements(Protocol):
    """Where revisions are, from memory: an engine is never asked."""

    def engines_with(self, base: str, pool: str, digest: str) -> list[Placement]:
        """The engines on which the revision is resident."""
        ...

    def engines_of(self, base: str, pool: str) -> list[Placement]:
        """All engines that are ready, under the base's own model name."""
        ...


class Loads(Protocol):
    """Cold loads."""

    async def ensure_resident(self, order: Order, deadline_s: float) -> Placement:
        """Raises: LoadTimeout, LoadFailed, Overloaded, NoEngine."""
        ...


@dataclass(slots=True)
class OutstandingWork:
    """Tokens that this process may still be owed by each engine."""

    tokens: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, engine: str, cost: int) -> None:
        """Work that was sent; a negative cost takes it away again."""
        left = self.tokens.get(engine, 0) + cost
        if left > 0:
            self.tokens[engine] = left
        else:
            self.tokens.pop(engine, None)

    def least(self, placements: list[Placement]) -> Placement:
        """The engine with the least; by name among equals."""
        return min(placements, key=lambda place: (self.tokens.get(place.engine, 0), place.engine))


class Dispatched:
    """An answer under way. Close it, whatever happens: the engine stops and its room goes to the next."""

    def __init__(self, answer: EngineAnswer, placement: Placement, cost: int, dispatcher: "Dispatcher") -> None:
        self.answer = answer
        self.placement = placement
        self._cost = cost
        self._dispatcher = dispatcher
        self._is_closed = False

    def close(self) -> None:
        """Stop the engine's work on it, if there is any left."""
        if not self._is_closed:
            self._is_closed = True
            self.answer.close()
            self._dispatcher.ended(self.placement.engine, self._cost)


class Dispatcher:
    """Brings requests to engines."""

    def __init__(
        self,
        placements: Placements,
        loads: Loads,
        room: WaitingRoom,
        client: EngineClient,
        clock: Clock,
        *,
        engine_key: str,
        wait_deadline_s: float,
    ) -> None:
        self._placements = placements
        self._loads = loads
        self._room = room
        self._client = client
        self._clock = clock
        self._engine_key = engine_key
        self._wait_deadline_s = wait_deadline_s
        self.work = OutstandingWork()

    async def send(self, order: Order, journey: Journey) -> Dispatched:
        """The engine's answer, its head checked: status 200 and the revision that was asked for.

        Raises: LoadTimeout, LoadFailed, Overloaded, NoEngine, EngineFailed, RefusedByEngine.
        """
        deadline_s = self._clock.monotonic_s() + self._wait_deadline_s
        avoided: set[tuple[str, str]] = set()
        lost = 0
        async with AsyncExitStack() as seat:
            is_seated = False
            was_sent_back = False
            while True:
                placement = self._choose(order, avoided)
                must_queue = placement is not None and (was_sent_back or self._room.is_contended(placement.engine))
                if (placement is None or must_queue) and not is_seated:
                    await seat.enter_async_context(self._room.seat(order.tenant))
                    is_seated = True
                if placement is None:
                    avoided.clear()
                    placement = await self._load(order, journey, deadline_s)
                elif must_queue:
                    await self._queue(order, journey, placement, deadline_s, first=was_sent_back)
                was_sent_back = False
                try:
                    dispatched = await self._ask(order, placement)
                except EngineUnreachable:
                    avoided.add((placement.engine, placement.adapter_name))
                    self._check_deadline(order, deadline_s)
                    await asyncio.sleep(UNREACHABLE_PAUSE_S)
                    continue
                except _Lost as error:
                    if lost >= LOST_ASKED_AGAIN:
                        raise EngineFailed(error.detail) from error
                    lost += 1
                    avoided.add((placement.engine, placement.adapter_name))
                    continue
                except _SentBack as verdict:
                    journey.sent_back += 1
                    self._check_deadline(order, deadline_s)
                    if verdict.is_absent:
                        avoided.add((placement.engine, placement.adapter_name))
                        await asyncio.sleep(UNREACHABLE_PAUSE_S)
                    else:
                        was_sent_back = True
                    continue
                journey.engine = placement.engine
                self._room.wake(placement.engine)  # There was room for this one; perhaps for the next too.
                return dispatched

    def ended(self, engine: str, cost: int) -> None:
        """A request has left the engine."""
        self.work.add(engine, -cost)
        self._room.wake(engine)

    def _choose(self, order: Order, avoided: set[tuple[str, str]]) -> Placement | None:
        if order.revision is None:
            found = self._placements.engines_of(order.base, order.pool)
        else:
            found = self._placements.engines_with(order.base, order.pool, order.revision.digest)
        left = [place for place in found if (place.engine, place.adapter_name) not in avoided]
        if not left and order.revision is None:
            # There is no load to wait for: ask again those that are known, until the feed drops them.
            left = found
            if not left:
                raise NoEngine(f"no engine serves base model {order.base} now", retry_after_s=5.0)
        return self.work.least(left) if left else None

    async def _load(self, order: Order, journey: Journey, deadline_s: float) -> Placement:
        journey.was_cold = True
        started_s = self._clock.monotonic_s()
        self._check_deadline(order, deadline_s)
        try:
            return await self._loads.ensure_resident(order, deadline_s - started_s)
        finally:
            journey.load_ms += (self._clock.monotonic_s() - started_s) * 1000

    async def _queue(
        self, order: Order, journey: Journey, placement: Placement, deadline_s: float, *, first: bool
    ) -> None:
        started_s = self._clock.monotonic_s()
        try:
            async with asyncio.timeout(max(0.0, deadline_s - started_s)):
                await self._room.turn(placement.engine, order.tenant, first=first)
        except TimeoutError as error:
            raise self._too_late(order) from error
        finally:
            journey.queue_ms += (self._clock.monotonic_s() - started_s) * 1000

    def _check_deadline(self, order: Order, deadline_s: float) -> None:
        if self._clock.monotonic_s() >= deadline_s:
            raise self._too_late(order)

    def _too_late(self, order: Order) -> Overloaded:
        return Overloaded(
            f"no engine of base model {order.base} had room within {self._wait_deadline_s:.0f} s",
            retry_after_s=BUSY_RETRY_AFTER_S,
        )

    async def _ask(self, order: Order, placement: Placement) -> Dispatched:
        body = orjson.dumps({**order.body, "model": placement.adapter_name})
        self.work.add(placement.engine, order.cost)
        try:
            answer = await self._client.post(placement.url + order.path, body, self._headers(order))
        except EngineUnreachable:
            self.work.add(placement.engine, -order.cost)
            raise
        except EngineFailed as error:
            self.work.add(placement.engine, -order.cost)
            raise _Lost(error.detail) from error
        except BaseException:
            self.ended(placement.engine, order.cost)
            raise
        dispatched = Dispatched(answer, placement, order.cost, self)
        try:
            await _check_head(order, placement, answer)
        except _SentBack:
            # Not `dispatched.close()`: that would wake the next one into the same verdict.
            answer.close()
            self.work.add(placement.engine, -order.cost)
            raise
        except BaseException:
            dispatched.close()
            raise
        return dispatched

    def _headers(self, order: Order) -> Mapping[str, str]:
        return {
            "authorization": f"Bearer {self._engine_key}",
            "content-type": "application/json",
            TENANT_HEADER: order.tenant,
            # Compression would hold events back.
            "accept-encoding": "identity",
            # Not the caller's id: an engine takes this as its own, and two of the same would collide there.
            "x-request-id": str(new_id()),
        }


class _SentBack(Exception):
    """The engine did nothing: it is busy, or does not have the adapter."""

    def __init__(self, *, is_absent: bool) -> None:
        self.is_absent = is_absent
        super().__init__()


class _Lost(EngineFailed):
    """The engine took the request and broke before it said anything."""


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
