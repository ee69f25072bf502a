"""A claim on one revision: its lease, renewed in the background, and patience with parts that are away for a while."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from openmint.catalog import revisions
from openmint.catalog.database import Catalog
from openmint.catalog.rows import Revision
from openmint.endings import end
from openmint.errors import Fenced, TryAgain

log = structlog.get_logger()

T = TypeVar("T")

HEARTBEATS_PER_LEASE = 4
"""Three may be lost before the lease is."""

RETRY_FLOOR_S = 0.2
RETRY_CEILING_S = 5.0


class HeldRevision:
    """Use as an async context manager. When `lost` is done, another claim holds the revision: write nothing more."""

    def __init__(self, catalog: Catalog, revision: Revision, lease_s: float) -> None:
        self.revision = revision
        self._catalog = catalog
        self._lease_s = lease_s
        self._is_lost = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "HeldRevision":
        self._task = asyncio.create_task(self._hold_lease())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            await end(self._task)

    async def persist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call until the store or the catalogue answers. Raises: Fenced once the revision is lost."""
        delay_s = RETRY_FLOOR_S
        while True:
            if self._is_lost:
                raise Fenced(f"revision {self.revision.revision_id} was taken over")
            try:
                return await call()
            except TryAgain as error:
                log.warning("export.call_retried", error=error.detail, in_s=delay_s)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, RETRY_CEILING_S)

    async def _hold_lease(self) -> None:
        revision = self.revision
        while not self._is_lost:
            await asyncio.sleep(self._lease_s / HEARTBEATS_PER_LEASE)
            try:
                async with self._catalog.connection() as connection:
                    await revisions.heartbeat_revision(connection, revision.revision_id, revision.fence, self._lease_s)
            except Fenced as error:
                log.warning("export.lost", revision_id=str(revision.revision_id), reason=error.detail)
                self._is_lost = True
            except TryAgain as error:
                log.warning("export.heartbeat_missed", revision_id=str(revision.revision_id), error=error.detail)
