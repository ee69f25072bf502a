"""Following a stream for a view in memory: every message once, in order, from an ephemeral consumer of one's own.

Nothing is acked and nothing is redelivered: a view can always be built again. The consumer is made anew behind the last
message after a loss of the connection or the server. Events without a stream (`job.progressed`) are heard as they fly.
"""

import asyncio
import contextlib
import inspect
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import structlog
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError

from openmint.bus.connection import Bus
from openmint.bus.messages import decode
from openmint.errors import CallerMistake
from openmint.events import Event

log = structlog.get_logger()

Deliver = Literal["new", "last_per_subject", "all"]
Handler = Callable[[Any], Awaitable[None] | None]

BATCH = 200
FETCH_S = 1.0
"""An idle feed shows in this time that it is alive."""

RETRY_S = 0.5
INACTIVE_S = 30.0
"""After this the server forgets the consumer of a process that is gone."""

_POLICIES = {
    "new": DeliverPolicy.NEW,
    "last_per_subject": DeliverPolicy.LAST_PER_SUBJECT,
    "all": DeliverPolicy.ALL,
}


class Tail:
    """One view's feed. `run` it; `silent_s` says how long the bus has not been heard."""

    def __init__(
        self,
        bus: Bus,
        event_classes: Sequence[type[Event]],
        handler: Handler,
        *,
        deliver: Deliver = "new",
        stream: str | None = None,
    ) -> None:
        self._bus = bus
        self._filters = [event_class.subject_filter() for event_class in event_classes]
        self._handler = handler
        self._deliver: Deliver = deliver
        self._stream = stream
        self._last_seq = 0
        self._last_contact_s = time.monotonic()
        self.attached = asyncio.Event()
        """Set while messages flow; clear while the feed is being made anew."""

    def silent_s(self) -> float:
        """Seconds since the bus was last known to be there and to have told everything it had."""
        return time.monotonic() - self._last_contact_s

    async def run(self) -> None:
        """Follow until cancelled."""
        if self._stream is None:
            await self._follow_core()
            return
        while True:
            try:
                await self._follow(self._stream)
            except (NatsError, APIError, TimeoutError, OSError) as error:
                log.warning("tail.interrupted", stream=self._stream, detail=repr(error))
            finally:
                self.attached.clear()
            await asyncio.sleep(RETRY_S)

    async def _follow(self, stream: str) -> None:
        js = self._bus.js
        info = await js.stream_info(stream)
        if info.state.last_seq < self._last_seq:
            # The stream was made anew, and its numbers with it.
            log.warning("tail.stream_renewed", stream=stream)
            self._last_seq = 0
            self._deliver = "all"
        elif self._last_seq == 0 and self._deliver == "new":
            # From here on by number, so that nothing is missed between this consumer and the next.
            self._last_seq = info.state.last_seq
        consumer = await js.add_consumer(stream, self._config())
        subscription = await js.pull_subscribe_bind(consumer.name, stream)
        expected = 1
        try:
            self.attached.set()
            self._last_contact_s = time.monotonic()
            while True:
                for message in await self._fetch(subscription):
                    position = message.metadata.sequence
                    if position.consumer != expected:
                        log.warning("tail.gap", stream=stream, after=self._last_seq)
                        return
                    expected += 1
                    await self._handle(message, stream, position.stream)
                    self._last_seq = position.stream
                self._last_contact_s = time.monotonic()
        finally:
            with contextlib.suppress(Exception):
                await subscription.unsubscribe()
                await js.delete_consumer(stream, consumer.name)

    async def _fetch(self, subscription: JetStreamContext.PullSubscription) -> list[Msg]:
        try:
            return await subscription.fetch(BATCH, timeout=FETCH_S)
        except TimeoutError:
            # Nothing new, or nobody there? The two look the same until one asks.
            await self._bus.nc.flush(timeout=2)
            return []

    def _config(self) -> ConsumerConfig:
        resumed = self._last_seq > 0
        return ConsumerConfig(
            filter_subjects=self._filters,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE if resumed else _POLICIES[self._deliver],
            opt_start_seq=self._last_seq + 1 if resumed else None,
            ack_policy=AckPolicy.NONE,
            inactive_threshold=INACTIVE_S,
            mem_storage=True,
            num_replicas=1,
        )

    async def _follow_core(self) -> None:
        async def receive(message: Msg) -> None:
            self._last_contact_s = time.monotonic()
            await self._handle(message, "", 0)

        subscriptions = [await self._bus.nc.subscribe(pattern, cb=receive) for pattern in self._filters]
        self.attached.set()
        try:
            while True:
                await asyncio.sleep(FETCH_S)
                with contextlib.suppress(NatsError, TimeoutError, OSError):
                    await self._bus.nc.flush(timeout=2)
                    self._last_contact_s = time.monotonic()
        finally:
            for subscription in subscriptions:
                with contextlib.suppress(NatsError):
                    await subscription.unsubscribe()

    async def _handle(self, message: Msg, stream: str, seq: int) -> None:
        try:
            event = decode(message.headers, message.subject, message.data, stream, seq).event
        except CallerMistake as error:
            log.warning("tail.message_unreadable", subject=message.subject, detail=error.detail)
            return
        try:
            outcome = self._handler(event)
            if inspect.isawaitable(outcome):
                await outcome
        except Exception:
            log.exception("tail.handler_failed", subject=message.subject)


async def tail(
    bus: Bus,
    event_classes: Sequence[type[Event]],
    handler: Handler,
    *,
    deliver: Deliver = "new",
    stream: str | None = None,
) -> None:
    """Give every event of these classes to `handler`, one at a time, until cancelled.

    `stream` None follows core NATS. What can't be read, or what the handler fails on, is logged and skipped.
    """
    await Tail(bus, event_classes, handler, deliver=deliver, stream=stream).run()
