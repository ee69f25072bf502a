"""A job that this process holds: its lease, its checkpoints on their way out, and its end in the catalogue.

It knows nothing about tensors. The training loop hands it files; it brings them into the store and names them in the
catalogue, in order, while the job trains on.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import structlog

from openmint.adapters.keys import checkpoint_key
from openmint.adapters.store import Store
from openmint.catalog import checkpoints, jobs
from openmint.catalog.database import Catalog
from openmint.catalog.rows import Job
from openmint.endings import end
from openmint.errors import Conflict, Fenced, NotFound, TryAgain
from openmint.events import Cause
from openmint_trainer.checkpoints import SavedFile
from openmint_trainer.progress import Progress

log = structlog.get_logger()

T = TypeVar("T")

HEARTBEATS_PER_LEASE = 4
"""Three may be lost before the lease is."""

RETRY_FLOOR_S = 0.2
RETRY_CEILING_S = 5.0


@dataclass(frozen=True, slots=True)
class PendingCheckpoint:
    """A checkpoint file on this machine that is not yet in the catalogue."""

    step: int
    saved: SavedFile
    want_revision: bool


class HeldJob:
    """One claim on one job. When `is_lost`, another claim holds it: drop everything and write nothing more."""

    def __init__(self, catalog: Catalog, store: Store, job: Job, progress: Progress, lease_s: float) -> None:
        self.job = job
        self.progress = progress
        self.is_lost = False
        self.cancel_requested = job.cancel_requested
        self.committed_step = job.step
        self._catalog = catalog
        self._store = store
        self._lease_s = lease_s
        self._pending: deque[PendingCheckpoint] = deque()
        self._changed = asyncio.Event()
        self._is_committing = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def key(self) -> tuple[UUID, int]:
        """Names this claim; a process may hold an old and a new claim on one job for a moment."""
        return self.job.job_id, self.job.fence

    def start(self) -> None:
        """Begin to hold the lease and to bring out checkpoints."""
        self._tasks = [asyncio.create_task(self._hold_lease()), asyncio.create_task(self._commit_pending())]

    async def close(self) -> None:
        """Stop both; the lease then runs out by itself unless the job has ended."""
        await end(*self._tasks)
        for pending in self._pending:
            pending.saved.path.unlink(missing_ok=True)
        self._pending.clear()

    def add_checkpoint(self, pending: PendingCheckpoint) -> None:
        """Bring a file out. One that is still waiting and that nobody wants a revision of is replaced by it."""
        being_committed = 1 if self._is_committing else 0
        while len(self._pending) > being_committed and not self._pending[-1].want_revision:
            self._pending.pop().saved.path.unlink(missing_ok=True)
        self._pending.append(pending)
        self._changed.set()

    @property
    def newest_step(self) -> int:
        """The step of the newest checkpoint, committed or on its way."""
        return self._pending[-1].step if self._pending else self.committed_step

    async def flush(self) -> None:
        """Wait until every checkpoint is committed, or the job is lost."""
        while self._pending and not self.is_lost:
            await asyncio.sleep(0.02)

    async def complete(self, steps: int, tokens: int, final_loss: float | None) -> None:
        """All steps are taken and committed."""
        await self._end(
            lambda: self._in_transaction(
                lambda conn: jobs.complete_job(conn, self.job.job_id, self.job.fence, steps, tokens, final_loss)
            )
        )

    async def fail(self, cause: Cause) -> None:
        """The job can't be done."""
        await self._end(
            lambda: self._in_transaction(lambda conn: jobs.fail_job(conn, self.job.job_id, self.job.fence, cause))
        )

    async def cancel(self) -> None:
        """The cancel that was asked for is honoured."""
        await self._end(
            lambda: self._in_transaction(lambda conn: jobs.cancel_job(conn, self.job.job_id, self.job.fence))
        )

    async def release(self) -> None:
        """Give the job back so that another process can go on at once."""
        await self._end(
            lambda: self._in_transaction(lambda conn: jobs.release_job(conn, self.job.job_id, self.job.fence))
        )

    async def persist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call until the store or the catalogue answers. Raises: Fenced once the job is lost."""
        delay_s = RETRY_FLOOR_S
        while True:
            if self.is_lost:
                raise Fenced(f"job {self.job.job_id} was taken over")
            try:
                return await call()
            except TryAgain as error:
                log.warning("job.call_retried", job_id=str(self.job.job_id), error=error.detail, in_s=delay_s)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, RETRY_CEILING_S)

    async def _in_transaction(self, call: Callable[..., Awaitable[object]]) -> None:
        async with self._catalog.transaction() as connection:
            await call(connection)

    async def _end(self, call: Callable[[], Awaitable[None]]) -> None:
        try:
            await self.persist(call)
        except (Fenced, Conflict, NotFound) as error:
            # Either another claim holds the job, or a commit of ours got through whose answer was lost.
            log.warning("job.end_not_written", job_id=str(self.job.job_id), fence=self.job.fence, reason=error.detail)
        except Exception:
            # The lease runs out, another claim tries again, and the tries are counted.
            log.exception("job.end_failed", job_id=str(self.job.job_id), fence=self.job.fence)
        self.is_lost = True
        await self.close()

    def _lose(self, error: Exception) -> None:
        if not self.is_lost:
            log.warning("job.lost", job_id=str(self.job.job_id), fence=self.job.fence, reason=str(error))
        self.is_lost = True

    async def _hold_lease(self) -> None:
        while not self.is_lost:
            await asyncio.sleep(self._lease_s / HEARTBEATS_PER_LEASE)
            try:
                async with self._catalog.connection() as connection:
                    wants_cancel = await jobs.heartbeat_job(
                        connection, self.job.job_id, self.job.fence, self._lease_s, self.progress.as_json()
                    )
                self.cancel_requested = self.cancel_requested or wants_cancel
            except Fenced as error:
                self._lose(error)
            except TryAgain as error:
                log.warning("job.heartbeat_missed", job_id=str(self.job.job_id), error=error.detail)
            except Exception as error:
                log.exception("job.heartbeat_failed", job_id=str(self.job.job_id))
                self._lose(error)

    async def _commit_pending(self) -> None:
        while not self.is_lost:
            await self._changed.wait()
            self._changed.clear()
            while self._pending and not self.is_lost:
                pending = self._pending[0]
                self._is_committing = True
                try:
                    await self._commit(pending)
                    self.committed_step = max(self.committed_step, pending.step)
                except (Fenced, NotFound) as error:
                    self._lose(error)
                except Exception as error:
                    log.exception("checkpoint.commit_failed", job_id=str(self.job.job_id), step=pending.step)
                    self._lose(error)
                finally:
                    self._is_committing = False
                pending.saved.path.unlink(missing_ok=True)
                self._pending.popleft()

    async def _commit(self, pending: PendingCheckpoint) -> None:
        job, saved = self.job, pending.saved
        key = checkpoint_key(job.job_id, job.fence, pending.step)
        await self.persist(lambda: self._store.put_file(key, saved.path))

        async def commit() -> None:
            async with self._catalog.transaction() as connection:
                await checkpoints.commit_checkpoint(
                    connection,
                    job.job_id,
                    job.fence,
                    pending.step,
                    key,
                    saved.sha256,
                    saved.file_bytes,
                    pending.want_revision,
                )

        await self.persist(commit)
        log.info(
            "checkpoint.committed",
            job_id=str(job.job_id),
            step=pending.step,
            checkpoint_bytes=saved.file_bytes,
            want_revision=pending.want_revision,
        )


def checkpoint_file(folder: Path, job: Job, step: int) -> Path:
    """Where the file waits on this machine."""
    return folder / f"{job.job_id}-{job.fence}-{step}.safetensors"
