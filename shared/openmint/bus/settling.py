"""What becomes of a message after its handler: ack, delayed nak, or dead letter. Handlers simply raise.

| the handler | the message |
|---|---|
| returns | acked, and the ack awaited |
| raises CallerMistake, or the message can't be read | dead letter, then terminated: a retry of the same can't help |
| raises Stale | acked: another writer has taken over |
| raises anything else | comes back after a rest, MAX_TRIES times in all; then dead letter |
| is cancelled (the process stops) | comes back at once, to whoever is there |
| dies with its process | comes back after the ack wait, and counts as a try |

While the catalogue, the store or the bus is away the handler is called again here, for as long as it takes: an outage
of ours must not use up the tries of a message that is all right. A beat holds the ack meanwhile.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import structlog
from faststream import BaseMiddleware
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.errors import APIError

from openmint.bus.connection import Bus
from openmint.bus.dead_letters import bury
from openmint.bus.messages import RawMessage
from openmint.bus.streams import ACK_WAIT_S, MAX_TRIES, ConsumerPlan, retry_delay_s
from openmint.endings import end
from openmint.errors import (
    BusUnavailable,
    CallerMistake,
    CatalogUnavailable,
    OpenmintError,
    Stale,
    StoreUnavailable,
)
from openmint.tracing import TRACEPARENT, within

log = structlog.get_logger()

BEATS_PER_ACK_WAIT = 3
PATIENCE_FLOOR_S = 0.25
PATIENCE_CEILING_S = 5.0

OURS_AWAY = (BusUnavailable, CatalogUnavailable, StoreUnavailable)

_ack_waits: dict[str, float] = {}


def remember_ack_wait(plan: ConsumerPlan) -> None:
    """Beat for the messages of this consumer as its ack wait asks."""
    _ack_waits[plan.name] = plan.ack_wait_s


class UsedUp(OpenmintError):
    """Every delivery of this message ended without an answer: its handling may end the process."""

    code = "tries_used_up"


def raw_message(message: Msg) -> RawMessage:
    """A message of JetStream as a value."""
    position = message.metadata
    return RawMessage(
        message.subject,
        message.data,
        dict(message.headers or {}),
        position.stream,
        position.sequence.stream,
        position.num_delivered,
    )


async def patiently(call: Callable[[], Awaitable[None]]) -> None:
    """Call again and again while a part of ours is away; every other outcome is the caller's."""
    rest_s = PATIENCE_FLOOR_S
    while True:
        try:
            return await call()
        except OURS_AWAY as error:
            log.warning("message.held", detail=error.detail, retry_s=rest_s)
            await asyncio.sleep(rest_s)
            rest_s = min(2 * rest_s, PATIENCE_CEILING_S)


class Settler:
    """Settles messages of one process. `bus` gives the connection once there is one."""

    def __init__(self, bus: Callable[[], Bus]) -> None:
        self._bus = bus

    async def settle(self, message: Msg, handle: Callable[[], Awaitable[Any]]) -> None:
        """Call `handle` and do with the message what its outcome asks for. Never raises but CancelledError."""
        raw = raw_message(message)
        consumer = message.metadata.consumer
        bound = structlog.contextvars.bound_contextvars(event_id=raw.event_id, subject=raw.subject, consumer=consumer)
        with bound, within(raw.headers.get(TRACEPARENT)):
            async with _beating(message, _ack_waits.get(consumer, ACK_WAIT_S) / BEATS_PER_ACK_WAIT):
                await self._settle(message, raw, consumer, handle)

    async def _settle(self, message: Msg, raw: RawMessage, consumer: str, handle: Callable[[], Awaitable[Any]]) -> None:
        if raw.deliveries > MAX_TRIES:
            await self._bury(message, raw, UsedUp(), consumer)
            return
        try:
            await handle()
        except asyncio.CancelledError:
            with contextlib.suppress(NatsError):
                await message.nak(delay=0.1)
            raise
        except CallerMistake as error:
            await self._bury(message, raw, error, consumer)
        except Stale as error:
            log.info("message.overtaken", detail=error.detail)
            await _ack(message)
        except Exception as error:
            if not isinstance(error, OpenmintError):
                log.exception("handler.failed")
            if raw.deliveries >= MAX_TRIES:
                await self._bury(message, raw, error, consumer)
            else:
                await _rest(message, raw, error)
        else:
            await _ack(message)

    async def _bury(self, message: Msg, raw: RawMessage, error: BaseException, consumer: str) -> None:
        try:
            await bury(self._bus(), raw, error, consumer=consumer)
        except OpenmintError as failure:
            # Not terminated: it comes back after the ack wait and is buried then.
            log.error("message.not_buried", detail=failure.detail)
            return
        detail = error.detail if isinstance(error, OpenmintError) else repr(error)
        log.warning("message.buried", detail=detail, deliveries=raw.deliveries)
        with contextlib.suppress(NatsError):
            await message.term()


async def _ack(message: Msg) -> None:
    try:
        await message.ack_sync(timeout=5)
    except (NatsError, APIError, TimeoutError, OSError) as error:
        # It will come again, and the handler will recognise it.
        log.warning("message.ack_lost", detail=repr(error))


async def _rest(message: Msg, raw: RawMessage, error: Exception) -> None:
    wanted_s = error.retry_after_s if isinstance(error, OpenmintError) else None
    delay_s = wanted_s or retry_delay_s(raw.deliveries)
    log.warning("message.retried", detail=str(error), deliveries=raw.deliveries, retry_s=delay_s)
    with contextlib.suppress(NatsError):
        await message.nak(delay=delay_s)


@contextlib.asynccontextmanager
async def _beating(message: Msg, every_s: float) -> AsyncGenerator[None]:
    async def beat() -> None:
        while True:
            await asyncio.sleep(every_s)
            with contextlib.suppress(NatsError, OSError):
                await message.in_progress()

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        await end(task)


def settle_middleware(settler: Settler) -> type[BaseMiddleware[Any, Any]]:
    """The FastStream middleware that settles every JetStream message of a broker."""

    class SettleMiddleware(BaseMiddleware[Any, Any]):
        async def consume_scope(self, call_next: Callable[[Any], Awaitable[Any]], msg: Any) -> Any:
            message = msg.raw_message
            if not isinstance(message, Msg) or not message.reply.startswith("$JS.ACK."):
                return await call_next(msg)
            await settler.settle(message, lambda: call_next(msg))
            return None

    return SettleMiddleware
