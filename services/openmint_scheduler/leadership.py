"""Leading a base model: a session advisory lock, and an epoch that rises with each leader.

The lock ends with its connection. A leader that is stopped keeps its connection but sends nothing on it; the server
ends a session that is idle for IDLE_SESSION_MS, so that another can take over. The stopped one wakes with an old epoch,
which engines refuse.
"""

import asyncio
import contextlib

import asyncpg
import structlog

from openmint.catalog.leaders import give_up_leadership, still_leads, take_leadership
from openmint.endings import end

log = structlog.get_logger()

CHECK_EVERY_S = 0.5
CHECK_TIMEOUT_S = 3.0
IDLE_SESSION_MS = 4000
"""Eight checks: a busy machine keeps its lead, a stopped process loses it."""

CONNECT_TIMEOUT_S = 5

_LOST = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


class Lead:
    """One term of leading one base: `ended` is set when it is over, whatever the reason."""

    def __init__(self, connection: asyncpg.Connection, base: str, epoch: int) -> None:
        self.base = base
        self.epoch = epoch
        self.ended = asyncio.Event()
        self._connection = connection
        self._watch = asyncio.create_task(self._check())

    async def _check(self) -> None:
        try:
            while True:
                await asyncio.sleep(CHECK_EVERY_S)
                async with asyncio.timeout(CHECK_TIMEOUT_S):
                    if not await still_leads(self._connection, self.base, self.epoch):
                        log.warning("leader.replaced", base=self.base, epoch=self.epoch)
                        return
        except _LOST as error:
            log.warning("leader.lost", base=self.base, epoch=self.epoch, detail=repr(error))
        finally:
            self.ended.set()

    async def give_up(self) -> None:
        """Let another lead at once."""
        await end(self._watch)
        with contextlib.suppress(*_LOST):
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                await give_up_leadership(self._connection, self.base)
        self._connection.terminate()


async def try_to_lead(dsn: str, base: str, owner: str) -> Lead | None:
    """Become the leader of a base, or None while another is or the catalogue is away."""
    settings = {
        "application_name": f"openmint-leader-{base}"[:63],
        "idle_session_timeout": str(IDLE_SESSION_MS),
    }
    try:
        connection = await asyncpg.connect(
            dsn, timeout=CONNECT_TIMEOUT_S, command_timeout=CHECK_TIMEOUT_S, server_settings=settings
        )
    except _LOST as error:
        log.warning("catalog.unreachable", base=base, detail=repr(error))
        return None
    epoch: int | None = None
    try:
        epoch = await take_leadership(connection, base, owner)
    except _LOST as error:
        log.warning("catalog.unreachable", base=base, detail=repr(error))
    finally:
        if epoch is None:
            connection.terminate()
    return Lead(connection, base, epoch) if epoch is not None else None
