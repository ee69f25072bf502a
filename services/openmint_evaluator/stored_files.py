"""An evaluation's files in the store: revisions verified against digest and signature, datasets, reports."""

import asyncio
from pathlib import Path

import structlog
from pydantic import ValidationError

from openmint.adapters.keys import evaluation_key
from openmint.adapters.revision_files import fetch_revision_folder
from openmint.adapters.signing import TrustedKeys
from openmint.adapters.store import Store
from openmint.catalog.rows import Base
from openmint.errors import BadAdapter, NotFound, StoreUnavailable, TooLarge
from openmint_evaluator.evaluation_files import AdapterFolder
from openmint_evaluator.report import Report

log = structlog.get_logger()

MAX_DATASET_BYTES = 512 << 20
MAX_REPORT_BYTES = 64 << 20


class StoredFiles:
    """`EvaluationFiles` over the object store."""

    def __init__(self, store: Store, trusted: TrustedKeys) -> None:
        self._store = store
        self._trusted = trusted

    async def fetch_adapter(self, digest: str, base: Base, into: Path) -> AdapterFolder:
        """Bring a revision to this machine. Raises: BadAdapter, StoreUnavailable."""
        await asyncio.to_thread(into.mkdir, parents=True, exist_ok=True)
        try:
            manifest = await fetch_revision_folder(self._store, digest, into, self._trusted)
        except NotFound as error:
            raise BadAdapter(f"{digest} is not whole in the store: {error.detail}") from error
        if manifest.base_digest != base.digest:
            raise BadAdapter(f"{digest} was made for base {manifest.base_digest}, not for {base.digest}")
        # PEFT warns about files that it does not know, and reads none of ours.
        return AdapterFolder(into, manifest.rank, tuple(manifest.targets), manifest.no_op)

    async def read_dataset(self, key: str) -> bytes:
        """The content of a dataset. Raises: NotFound, TooLarge, StoreUnavailable."""
        return await self._store.get_bytes(key, MAX_DATASET_BYTES)

    async def read_report(self, key: str) -> Report | None:
        """An earlier report; None when it is gone or of another format: then things are measured again."""
        try:
            return Report.model_validate_json(await self._store.get_bytes(key, MAX_REPORT_BYTES))
        except (NotFound, TooLarge, StoreUnavailable, ValidationError) as error:
            log.warning("report.not_read", key=key, error=str(error)[:300])
            return None

    async def write_report(self, report: Report) -> str:
        """Store the report under its evaluation's key. Raises: StoreUnavailable."""
        key = evaluation_key(report.evaluation_id)
        await self._store.put_bytes(key, report.as_json())
        return key
