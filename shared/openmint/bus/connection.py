"""The connection of one process to the bus, and publishing.

Facts of the catalogue do not start here: they go through the outbox (`openmint.catalog.outbox_rows`), whose relay
publishes them. Here are soft state, commands and what the relay itself needs.
"""

import asyncio
import contextlib

import structlog
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError, OutboundBufferLimitError
from nats.js import JetStreamContext
from nats.js.api import PubAck
from nats.js.errors import APIError
from pydantic import BaseModel

from openmint.bus.messages import cloud_event_headers, command_headers, encode
from openmint.bus.streams import stream_of
from openmint.errors import BusUnavailable, OpenmintError, TooLarge
from openmint.events import Command, Fact
from openmint.settings import CommonSettings
from openmint.tracing import trace_headers

log = structlog.get_logger()

PING_INTERVAL_S = 5
MAX_OUTSTANDING_PINGS = 2
"""A black hole is noticed in ten seconds; the library's default takes four minutes."""

CONNECT_TIMEOUT_S = 10.0
RECONNECT_WAIT_S = 0.25
PUBLISH_TIMEOUT_S = 5.0
PENDING_BYTES = 2 * 1024 * 1024
"""What is published while the server is away waits here; more is refused at once."""

_MESSAGE_TOO_LARGE = 10054


class Bus:
    """What a process does with the bus, apart from consuming."""

    def __init__(self, nc: Client, name: str) -> None:
        self.nc = nc
        self.js: JetStreamContext = nc.jetstream(timeout=PUBLISH_TIMEOUT_S, publish_async_max_pending=4096)
        self.name = name

    async def publish_fact(self, fact: Fact, *, causation_id: str | None = None) -> None:
        """Publish once, however often it is called with the same fact.

        Raises: BusUnavailable, TooLarge.
        """
        if causation_id is not None:
            fact = fact.model_copy(update={"causation_id": causation_id})
        await self.publish_raw(fact.subject(), encode(fact), cloud_event_headers(fact, self.name))

    async def publish_soft(self, fact: Fact) -> bool:
        """Publish what may be lost; False when it was not taken. Without a stream for it, it goes out unstored."""
        try:
            if stream_of(fact.subject()) is None:
                await self.publish_core(fact.subject(), fact)
            else:
                await self.publish_fact(fact)
        except OpenmintError as error:
            log.warning("fact.not_published", subject=fact.subject(), detail=error.detail)
            return False
        return True

    async def publish_core(self, subject: str, model: BaseModel) -> None:
        """Publish without a stream: whoever listens now hears it. Raises: BusUnavailable, TooLarge."""
        headers = cloud_event_headers(model, self.name) if isinstance(model, Fact) else trace_headers() or None
        if not self.nc.is_connected:
            # Buffered, it would be told late, as if it were so then.
            raise BusUnavailable("the bus is not connected", retry_after_s=1.0)
        try:
            await self.nc.publish(subject, model.model_dump_json().encode(), headers=headers)
        except MaxPayloadError as error:
            raise TooLarge(f"a message on {subject} is above the bus's limit of {self.nc.max_payload} bytes") from error
        except NatsError as error:
            raise BusUnavailable(f"can't publish {subject}: {error!r}", retry_after_s=1.0) from error

    async def publish_command(self, command: Command, subject: str) -> PubAck:
        """Publish a command to its stream. Raises: BusUnavailable, TooLarge."""
        return await self.publish_raw(subject, encode(command), command_headers(command, self.name))

    async def publish_raw(
        self, subject: str, data: bytes, headers: dict[str, str] | None = None, timeout_s: float = PUBLISH_TIMEOUT_S
    ) -> PubAck:
        """Publish bytes and wait for the stream's ack. Raises: BusUnavailable, TooLarge."""
        try:
            return await self.js.publish(subject, data, timeout=timeout_s, headers=dict(headers) if headers else None)
        except MaxPayloadError as error:
            raise TooLarge(
                f"{len(data)} bytes on {subject} are above the bus's limit of {self.nc.max_payload}; data goes in by "
                "`openmint data put` and is then named by its digest"
            ) from error
        except APIError as error:
            if error.err_code == _MESSAGE_TOO_LARGE:
                raise TooLarge(f"{len(data)} bytes on {subject} are above the stream's limit") from error
            raise BusUnavailable(f"the bus refused {subject}: {error.description}", retry_after_s=1.0) from error
        except OutboundBufferLimitError as error:
            raise BusUnavailable("the bus is away and the buffer is full", retry_after_s=1.0) from error
        except (NatsError, OSError, TimeoutError) as error:
            raise BusUnavailable(f"the bus did not take {subject}: {error!r}", retry_after_s=1.0) from error

    async def close(self) -> None:
        """Send what is buffered and disconnect."""
        with contextlib.suppress(NatsError, TimeoutError, OSError):
            if self.nc.is_connected:
                await self.nc.flush(timeout=2)
        await disconnect(self.nc)


async def disconnect(nc: Client) -> None:
    """Close `nc`, whatever state its socket is in; only our own cancellation comes out of it.

    A client whose reconnect was interrupted raises CancelledError from `close` to a caller whom nobody cancelled.
    """
    (outcome,) = await asyncio.gather(nc.close(), return_exceptions=True)
    expected = (NatsError, OSError, asyncio.InvalidStateError, asyncio.CancelledError)
    if isinstance(outcome, BaseException) and not isinstance(outcome, expected):
        raise outcome


async def connect_bus(settings: CommonSettings, name: str, timeout_s: float = CONNECT_TIMEOUT_S) -> Bus:
    """Connect, within `timeout_s`; later losses heal by themselves.

    Raises: BusUnavailable.
    """

    reasons: list[str] = []

    async def on_error(error: Exception) -> None:
        if not any("authorization" in reason.lower() for reason in reasons):
            reasons[:] = [repr(error)]  # A refused client also meets resets; the refusal is what says why.
        if "permissions violation" in str(error).lower():
            # The publisher only sees a timeout: this line is the one place that tells the true cause.
            log.critical("bus.permission_denied", connection=name, detail=str(error))
        else:
            log.warning("bus.error", connection=name, detail=repr(error))

    async def on_disconnect() -> None:
        if not nc.is_closed:  # Our own goodbye is no loss.
            log.warning("bus.disconnected", connection=name)

    async def on_reconnect() -> None:
        log.info("bus.reconnected", connection=name)

    nc = Client()
    try:
        async with asyncio.timeout(timeout_s):
            await nc.connect(
                servers=[settings.nats_url],
                name=f"openmint/{name}",
                user=settings.nats_user or None,
                password=settings.nats_password or None,
                connect_timeout=3,
                allow_reconnect=True,
                max_reconnect_attempts=-1,
                reconnect_time_wait=RECONNECT_WAIT_S,  # pyright: ignore[reportArgumentType] - any number of seconds will do
                ping_interval=PING_INTERVAL_S,
                max_outstanding_pings=MAX_OUTSTANDING_PINGS,
                pending_size=PENDING_BYTES,
                error_cb=on_error,
                disconnected_cb=on_disconnect,
                reconnected_cb=on_reconnect,
            )
    except (NatsError, OSError, TimeoutError) as error:
        with contextlib.suppress(Exception):
            await disconnect(nc)
        reason = reasons[0] if reasons else repr(error)
        raise BusUnavailable(f"can't connect to the bus at {settings.nats_url}: {reason}", retry_after_s=1.0) from error
    return Bus(nc, name)
