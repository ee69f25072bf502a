"""The pool of connections to the catalogue. Every query lives in the file of its table family, beside this one."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import structlog
from asyncpg.pool import PoolConnectionProxy

from openmint.errors import CatalogUnavailable

log = structlog.get_logger(__name__)

Connection = asyncpg.Connection | PoolConnectionProxy
"""What the functions of the catalogue take first: a connection, pooled or not."""

COMMAND_TIMEOUT_S = 30.0
"""Longer than any query of ours; a connection to a dead host must not hold a worker for ever."""

IDLE_TRANSACTION_MS = 30_000
"""A process that is stopped inside a transaction loses it, and with it the row locks that it would keep from others."""

CLOSE_TIMEOUT_S = 5.0

ACQUIRE_TIMEOUT_S = 10.0
"""Waiting longer for a free connection only moves the queue to where nobody sees it."""

UNSAFE_NO_FENCING_VARIABLE = "OPENMINT_UNSAFE_NO_FENCING"

_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)
_CONFUSED = (asyncpg.InterfaceError, asyncpg.InternalClientError, ConnectionError)
"""What is raised when a connection breaks under its user, but not only then: the connection itself is asked."""

_UNREACHABLE = (*_LOST, OSError, TimeoutError, asyncpg.TooManyConnectionsError)


async def value_of(conn: Connection, query: str, *arguments: object) -> Any:
    """The first column of the first row, or None when there is no row."""
    return await conn.fetchval(query, *arguments)


class Catalog:
    """The catalogue as a service sees it: a pool, and transactions on it."""

    def __init__(self, pool: asyncpg.Pool, *, dsn: str, fencing: bool) -> None:
        self.pool = pool
        self.dsn = dsn
        self.fencing = fencing

    @classmethod
    async def open(
        cls,
        dsn: str,
        *,
        min_size: int = 1,
        max_size: int = 8,
        fencing: bool | None = None,
        application: str = "openmint",
    ) -> "Catalog":
        """Connect.

        `fencing=False` (or OPENMINT_UNSAFE_NO_FENCING=1) lets replaced workers write. It exists so that the chaos run
        can show that its oracle would notice; nothing else may use it.
        Raises: CatalogUnavailable.
        """
        if fencing is None:
            fencing = os.environ.get(UNSAFE_NO_FENCING_VARIABLE, "") != "1"
        # jit off: our queries take less time than their compilation would.
        server_settings = {
            "application_name": application,
            "jit": "off",
            "timezone": "UTC",
            "idle_in_transaction_session_timeout": str(IDLE_TRANSACTION_MS),
            # A host that vanished gives its row locks back after half a minute, not after hours.
            "tcp_keepalives_idle": "10",
            "tcp_keepalives_interval": "5",
            "tcp_keepalives_count": "4",
        }
        if not fencing:
            log.critical("catalog.fencing_disabled", effect="replaced workers can write; results will be doubled")
            server_settings["openmint.unsafe_no_fencing"] = "on"
        try:
            pool = await asyncpg.create_pool(
                dsn,
                min_size=min_size,
                max_size=max_size,
                command_timeout=COMMAND_TIMEOUT_S,
                server_settings=server_settings,
            )
        except _UNREACHABLE as error:
            raise CatalogUnavailable(f"can't connect to the catalogue: {error}", retry_after_s=1.0) from error
        return cls(pool, dsn=dsn, fencing=fencing)

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """A connection for reading. Raises: CatalogUnavailable when the server can't be reached."""
        try:
            connection = await self.pool.acquire(timeout=ACQUIRE_TIMEOUT_S)
        except _UNREACHABLE as error:
            raise CatalogUnavailable(f"the catalogue does not answer: {error!r}", retry_after_s=1.0) from error
        try:
            yield connection
        except _LOST as error:
            raise CatalogUnavailable(f"the connection to the catalogue broke: {error!r}", retry_after_s=1.0) from error
        except _CONFUSED as error:
            if not _is_gone(connection):
                raise
            raise CatalogUnavailable(f"the connection to the catalogue broke: {error!r}", retry_after_s=1.0) from error
        finally:
            # The pool throws a connection away whose return fails.
            with contextlib.suppress(*_LOST, *_CONFUSED):
                await self.pool.release(connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection]:
        """A connection inside one transaction: committed at the end, undone by any error.

        Raises: CatalogUnavailable when the server can't be reached; whether the commit happened is then unknown.
        """
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def close(self) -> None:
        """Close the pool; connections still in use get a short time to finish."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.pool.close()
        except TimeoutError:
            self.pool.terminate()


def _is_gone(connection: Connection) -> bool:
    """True when the server has ended this connection; the pool then takes it out of the caller's hand at once."""
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:
        return True
