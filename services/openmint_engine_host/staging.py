"""From a digest to a prepared adapter on this machine, outside the engine process.

Fetch (which verifies the bytes as they come) and repack run under a limit of their own; many who ask for one digest
share one staging. Nothing that has not passed every check ever gets a layout file.
"""

import asyncio
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from openmint.engines.protocol import StageResult
from openmint.errors import BadAdapter
from openmint.identifiers import check_digest
from openmint_engine_host.layout import BadLayout, ModuleTable, pack
from openmint_engine_host.spool import Prepared, Spool


@dataclass(frozen=True, slots=True)
class VerifiedAdapter:
    """A revision's weights, whose bytes are what its digest and signature say."""

    weights: Path
    rank: int
    alpha: float


class RevisionSource(Protocol):
    """Where revisions come from."""

    async def fetch(self, digest: str, folder: Path) -> VerifiedAdapter:
        """Bring a revision's weights into `folder`, verified. Raises: NotFound, BadAdapter, StoreUnavailable."""
        ...


class Stager:
    """Stages revisions for one engine."""

    def __init__(
        self,
        source: RevisionSource,
        spool: Spool,
        scratch: Path,
        concurrency: int,
        resident_digests: Callable[[], Collection[str]],
    ) -> None:
        self._source = source
        self._spool = spool
        self._scratch = scratch
        self._limit = asyncio.Semaphore(concurrency)
        self._resident_digests = resident_digests
        self._running: dict[tuple[str, str], asyncio.Task[StageResult]] = {}
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)

    async def stage(self, digest: str, table: ModuleTable) -> StageResult:
        """Prepare a revision; at once when it lies prepared already.

        Raises: BadAdapter, NotFound, StoreUnavailable.
        """
        key = (check_digest(digest), table.fingerprint())
        prepared = await asyncio.to_thread(self._spool.find, *key)
        if prepared is not None:
            return StageResult(digest, prepared.layout, prepared.layout_bytes, 0.0, 0.0, was_staged=True)
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._stage(digest, table))
            task.add_done_callback(lambda _: self._running.pop(key, None))
        # Shielded: one caller that hangs up must not fail the others.
        return await asyncio.shield(task)

    def find(self, digest: str, layout: str) -> Prepared | None:
        """The prepared copy of a revision."""
        return self._spool.find(digest, layout)

    def digests(self, layout: str) -> tuple[str, ...]:
        """What lies prepared."""
        return self._spool.digests(layout)

    def drop(self, digest: str, layout: str) -> None:
        """Delete a prepared copy, unless the revision is resident."""
        if digest not in self._resident_digests():
            self._spool.drop(digest, layout)

    async def _stage(self, digest: str, table: ModuleTable) -> StageResult:
        async with self._limit:
            folder = self._scratch / digest.removeprefix("sha256:")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            try:
                began = time.perf_counter()
                verified = await self._source.fetch(digest, folder)
                fetched = time.perf_counter()
                prepared = await asyncio.to_thread(self._prepare, digest, table, verified)
                packed = time.perf_counter()
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        self._spool.trim({*self._resident_digests(), digest})
        return StageResult(
            digest=digest,
            layout=prepared.layout,
            layout_bytes=prepared.layout_bytes,
            fetch_ms=(fetched - began) * 1e3,
            pack_ms=(packed - fetched) * 1e3,
            was_staged=False,
        )

    def _prepare(self, digest: str, table: ModuleTable, adapter: VerifiedAdapter) -> Prepared:
        if adapter.rank > table.max_rank:
            raise BadAdapter(f"{digest}: rank {adapter.rank} is above this engine's {table.max_rank}")
        try:
            return self._spool.add(
                digest,
                table.fingerprint(),
                lambda out: pack(adapter.weights, table, digest, adapter.rank, adapter.alpha, out),
            )
        except BadLayout as error:
            raise BadAdapter(f"{digest}: {error}") from error
