"""The exporter as a worker: claims due exports, carries them out side by side, commits them under their fence.

Handlers wake it, the catalogue decides. Making the bytes is `export`'s work.
"""

import asyncio
import contextlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import structlog
from structlog.contextvars import bound_contextvars

from openmint.adapters.inspection import Inspector
from openmint.adapters.revision_files import put_revision_folder
from openmint.adapters.signing import SigningKey
from openmint.adapters.store import Store
from openmint.bases import BaseFacts
from openmint.catalog import bases, checkpoints, revisions
from openmint.catalog.database import Catalog
from openmint.catalog.rows import Checkpoint, Revision
from openmint.endings import end
from openmint.errors import CallerMistake, Conflict, Fenced, NotFound, OpenmintError, TryAgain
from openmint.events import Cause
from openmint_exporter.export import SignedFolder, export_checkpoint
from openmint_exporter.held_revision import HeldRevision

SERVICE = "exporter"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What of the settings the worker needs."""

    owner: str
    dtype: str
    concurrency: int
    lease_s: float
    poll_s: float
    drain_s: float
    work_folder: Path


class ExporterWorker:
    """One exporter process's work."""

    def __init__(
        self, settings: WorkerSettings, catalog: Catalog, store: Store, key: SigningKey, wake: asyncio.Event
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._store = store
        self._key = key
        self._wake = wake
        self._inspector = Inspector()
        self._stopping = asyncio.Event()
        self._tasks: dict[asyncio.Task[None], Revision] = {}

    def stop(self) -> None:
        """Claim no more; `run` returns when the exports under way have ended or been given back."""
        self._stopping.set()
        self._wake.set()

    async def run(self) -> None:
        """Work until `stop`."""
        self._settings.work_folder.mkdir(parents=True, exist_ok=True)
        try:
            while not self._stopping.is_set():
                self._wake.clear()
                try:
                    while len(self._tasks) < self._settings.concurrency and await self._claim_one():
                        pass
                except TryAgain as error:
                    log.warning("claim.failed", error=error.detail)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.poll_s):
                        await self._wake.wait()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=self._settings.drain_s)
        finally:
            await self._give_back()
            await self._inspector.close()

    async def _claim_one(self) -> bool:
        if self._stopping.is_set():
            return False
        async with self._catalog.connection() as connection:
            revision = await revisions.claim_export(connection, self._settings.owner, self._settings.lease_s)
        if revision is None:
            return False
        task = asyncio.create_task(self._carry_out(revision))
        self._tasks[task] = revision
        task.add_done_callback(self._forget)
        return True

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        self._wake.set()

    async def _carry_out(self, revision: Revision) -> None:
        policy = f"{revision.tenant}/{revision.policy}"
        with bound_contextvars(revision_id=str(revision.revision_id), policy=policy, fence=revision.fence):
            async with HeldRevision(self._catalog, revision, self._settings.lease_s) as held:
                try:
                    await self._export(held)
                except Fenced as error:
                    log.warning("export.fenced", reason=error.detail)
                except TryAgain as error:
                    log.warning("export.given_up", error=error.detail)
                except OpenmintError as error:
                    if error.retryable:
                        # The lease runs out, another claim tries again, and the tries are counted.
                        log.warning("export.given_up", error=error.detail)
                    else:
                        await self._fail(held, cause_of(error))
                except Exception:
                    log.exception("export.broke")

    async def _export(self, held: HeldRevision) -> None:
        revision = held.revision
        began = time.perf_counter()
        base, checkpoint = await held.persist(lambda: self._read_rows(revision))
        with tempfile.TemporaryDirectory(dir=self._settings.work_folder) as scratch:
            file, folder = Path(scratch) / "checkpoint.safetensors", Path(scratch) / "revision"
            folder.mkdir()
            await held.persist(
                lambda: self._store.fetch_to(checkpoint.key, file, max_bytes=checkpoint.checkpoint_bytes)
            )
            fetched = time.perf_counter()
            signed = await export_checkpoint(
                file, checkpoint.sha256, base, self._settings.dtype, self._key, self._inspector, folder
            )
            made = time.perf_counter()
            await held.persist(lambda: put_revision_folder(self._store, signed.digest, folder))
            stored = time.perf_counter()
        exported = await held.persist(lambda: self._commit(revision, signed, (time.perf_counter() - began) * 1e3))
        log.info(
            "revision.exported",
            digest=signed.digest,
            number=exported.number,
            step=revision.step,
            rank=signed.facts.rank,
            adapter_bytes=signed.facts.adapter_bytes,
            is_zero=signed.facts.is_zero,
            fetch_ms=round((fetched - began) * 1e3, 1),
            make_ms=round((made - fetched) * 1e3, 1),
            store_ms=round((stored - made) * 1e3, 1),
            export_ms=round(exported.export_ms or 0.0, 1),
        )

    async def _read_rows(self, revision: Revision) -> tuple[BaseFacts, Checkpoint]:
        if revision.checkpoint_id is None:
            raise Conflict(f"revision {revision.revision_id} comes from no checkpoint")
        async with self._catalog.connection() as connection:
            base = await bases.find_base(connection, revision.base)
            checkpoint = await checkpoints.find_checkpoint(connection, revision.checkpoint_id)
        return BaseFacts.registered(base.name, base.digest, base.modules, base.config), checkpoint

    async def _commit(self, revision: Revision, signed: SignedFolder, export_ms: float) -> Revision:
        async with self._catalog.transaction() as connection:
            return await revisions.commit_export(
                connection,
                revision.revision_id,
                revision.fence,
                signed.digest,
                signed.manifest.as_json(),
                signed.facts.adapter_bytes,
                export_ms,
                service=SERVICE,
            )

    async def _fail(self, held: HeldRevision, cause: Cause) -> None:
        revision = held.revision

        async def fail() -> None:
            async with self._catalog.transaction() as connection:
                await revisions.fail_export(connection, revision.revision_id, revision.fence, cause, service=SERVICE)

        try:
            await held.persist(fail)
        except OpenmintError as error:
            log.warning("export.end_not_written", reason=error.detail)
            return
        log.warning("revision.failed", code=cause.code, detail=cause.detail, fault=cause.fault)

    async def _give_back(self) -> None:
        """Cancel what did not end in time and make it claimable at once."""
        left = dict(self._tasks)
        await end(*left)
        for revision in left.values():
            try:
                async with self._catalog.connection() as connection:
                    await revisions.release_revision(connection, revision.revision_id, revision.fence)
            except (Fenced, NotFound, TryAgain) as error:
                log.warning("export.not_released", revision_id=str(revision.revision_id), reason=error.detail)


def cause_of(error: OpenmintError) -> Cause:
    """Why an export failed, for the policy's owner. A file that is gone or broken in our store is our own fault."""
    is_theirs = isinstance(error, CallerMistake) and not isinstance(error, NotFound)
    return Cause(code=error.code, detail=error.detail, field=error.field, fault="user" if is_theirs else "server")
