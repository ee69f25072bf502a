"""What the keeper does, and how often. It reacts to time, not to events: it is what works when no event arrives."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import asyncpg
import structlog

from openmint.adapters.store import Store
from openmint.catalog.database import Catalog
from openmint.clock import Clock
from openmint.errors import TryAgain
from openmint_keeper import due_work, file_sweep
from openmint_keeper.settings import KeeperSettings

log = structlog.get_logger()

Task = Callable[[], Awaitable[object]]

_PASSING = (TryAgain, asyncpg.TransactionRollbackError, asyncpg.QueryCanceledError, TimeoutError)
"""A part that is away, a deadlock, a query that took too long. Anything else is our mistake and ends the process."""


class Rounds:
    """Short rounds every few seconds, sweeps every few minutes, until told to stop."""

    def __init__(self, catalog: Catalog, store: Store, settings: KeeperSettings, clock: Clock) -> None:
        self._catalog = catalog
        self._store = store
        self._settings = settings
        self._clock = clock
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Begin no further task; `run` returns when the one under way has ended."""
        self._stopping.set()

    async def run(self) -> None:
        """Do rounds until `stop`."""
        next_sweep_s = self._clock.monotonic_s()
        while not self._stopping.is_set():
            await self.round()
            if self._clock.monotonic_s() >= next_sweep_s:
                await self.sweep()
                next_sweep_s = self._clock.monotonic_s() + self._settings.keeper_sweep_every_s
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.keeper_every_s):
                    await self._stopping.wait()

    async def round(self) -> None:
        """End what is exhausted, then tell again of what is due."""
        catalog, settings = self._catalog, self._settings
        await self._attempt("end_exhausted", lambda: due_work.end_exhausted(catalog))
        await self._attempt(
            "announce_due_steps", lambda: due_work.announce_due_steps(catalog, settings.keeper_announce_after_s)
        )
        await self._attempt("watch_outbox", lambda: due_work.watch_outbox(catalog, settings.keeper_outbox_warn_s))

    async def sweep(self) -> None:
        """Let files and memories go that nobody needs any more."""
        catalog, store, settings = self._catalog, self._store, self._settings
        await self._attempt("prune_inbox", lambda: due_work.prune_inbox(catalog, settings.keeper_inbox_keep_s))
        await self._attempt(
            "drop_superseded_checkpoints",
            lambda: file_sweep.drop_superseded_checkpoints(catalog, store, settings.keeper_checkpoint_keep_s),
        )
        await self._attempt(
            "delete_retired_revisions",
            lambda: file_sweep.delete_retired_revisions(catalog, store, settings.keeper_retired_keep_s),
        )
        await self._attempt(
            "sweep_orphans", lambda: file_sweep.sweep_orphans(catalog, store, settings.keeper_orphan_age_s)
        )

    async def _attempt(self, name: str, task: Task) -> None:
        """A part that does not answer now will be asked again in the next round; the other tasks go on."""
        if self._stopping.is_set():
            return
        try:
            await task()
        except _PASSING as error:
            log.warning("round.task_failed", task=name, error=str(error))
