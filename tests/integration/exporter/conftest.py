"""A base of numbers alone, checkpoints of it as a trainer leaves them, and revisions that are wanted of them."""

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from safetensors.numpy import save_file

from openmint.adapters.keys import checkpoint_key
from openmint.adapters.signing import SigningKey
from openmint.adapters.store import Store
from openmint.bases import BaseFacts
from openmint.catalog import bases, checkpoints, jobs, revisions
from openmint.catalog.database import Catalog
from openmint.catalog.rows import Revision, RevisionState
from openmint_exporter.worker import ExporterWorker, WorkerSettings

MODULES = {
    f"model.layers.{layer}.self_attn.{name}": shape
    for layer in range(2)
    for name, shape in (("q_proj", (16, 16)), ("v_proj", (8, 16)))
}


@pytest.fixture
def base_facts() -> BaseFacts:
    return BaseFacts.registered("tiny", "sha256:" + "a" * 64, MODULES, {})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open((tmp_path / "store").as_uri())


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.load_or_create(tmp_path / "keys")


def write_checkpoint(path: Path, base: BaseFacts, seed: int = 0, **changes: Any) -> bytes:
    """A checkpoint file with optimiser state; `changes` go into its metadata. Returns its sha256."""
    random = np.random.default_rng(seed)
    rank = int(changes.get("rank", 4))
    tensors: dict[str, np.ndarray] = {}
    for module, (out_size, in_size) in base.modules.items():
        for half, shape in (("lora_A", (rank, in_size)), ("lora_B", (out_size, rank))):
            for prefix in ("adapter", "adam_m", "adam_v"):
                tensors[f"{prefix}.{module}.{half}"] = random.normal(0, 0.1, shape).astype(np.float32)
    meta: dict[str, Any] = {
        "format": 1,
        "base": base.name,
        "base_digest": base.digest,
        "rank": rank,
        "alpha": 8.0,
        "targets": ["v_proj", "q_proj"],
        "step": 1,
        "adam_step": 1,
        "tokens": 10,
        "cursor": {"epoch": 0, "index": 0, "order_seed": 0},
        "random_state": "",
        "seed": 0,
        "recipe": "sft",
    }
    spoil: Callable[[dict[str, np.ndarray]], None] | None = changes.pop("spoil", None)
    if spoil is not None:
        spoil(tensors)
    save_file(tensors, path, metadata={"openmint": json.dumps(meta | changes)})
    return hashlib.sha256(path.read_bytes()).digest()


@pytest.fixture
def make_checkpoint() -> Callable[..., bytes]:
    """`make_checkpoint(path, base, seed=0, spoil=None, **metadata)`: writes the file, answers its sha256."""
    return write_checkpoint


@dataclass
class Wanted:
    """Puts checkpoints and wanted revisions where a trainer would."""

    catalog: Catalog
    store: Store
    base: BaseFacts
    folder: Path
    made: int = 0

    async def revision(self, seed: int = 0, sha256: bytes | None = None, **changes: Any) -> Revision:
        self.made += 1
        async with self.catalog.transaction() as conn:
            await jobs.accept_job(
                conn,
                service="gateway",
                tenant="acme",
                policy=f"poet-{self.made}",
                base=self.base.name,
                spec={},
                idempotency_key=None,
                request_hash=bytes(32),
                request_id=f"request-{self.made}",
            )
        async with self.catalog.connection() as conn:
            job = await jobs.claim_job(conn, self.base.name, "trainer-1", 60)
        assert job is not None
        file = self.folder / f"{job.job_id}.safetensors"
        digest = write_checkpoint(file, self.base, seed, **changes)
        key = checkpoint_key(job.job_id, job.fence, 1)
        await self.store.put_file(key, file)
        async with self.catalog.connection() as conn:
            _, revision = await checkpoints.commit_checkpoint(
                conn, job.job_id, job.fence, 1, key, sha256 or digest, file.stat().st_size, True
            )
            await jobs.complete_job(conn, job.job_id, job.fence, 1, 1, None)
        assert revision is not None
        return revision

    async def until(self, revision_id: UUID, *states: RevisionState, timeout_s: float = 60.0) -> Revision:
        async with asyncio.timeout(timeout_s):
            while True:
                async with self.catalog.connection() as conn:
                    revision = await revisions.find_revision(conn, revision_id)
                if revision.state in states:
                    return revision
                await asyncio.sleep(0.02)


@pytest.fixture
async def wanted(catalog: Catalog, store: Store, base_facts: BaseFacts, tmp_path: Path) -> Wanted:
    async with catalog.transaction() as conn:
        await bases.register_base(
            conn, base_facts.name, base_facts.digest, "/bases/tiny", base_facts.modules, asdict(base_facts)
        )
    return Wanted(catalog, store, base_facts, tmp_path)


@pytest.fixture
def running_exporter(
    catalog: Catalog, store: Store, key: SigningKey, tmp_path: Path
) -> Callable[..., AbstractAsyncContextManager[ExporterWorker]]:
    """Runs a worker inside the test; it is stopped gracefully at the end."""

    @asynccontextmanager
    async def run(**changes: Any) -> AsyncGenerator[ExporterWorker]:
        settings = {
            "owner": "exporter-1",
            "dtype": "bfloat16",
            "concurrency": 2,
            "lease_s": 20.0,
            "poll_s": 0.05,
            "drain_s": 20.0,
            "work_folder": tmp_path / "work",
        }
        used_store = changes.pop("store", store)
        worker = ExporterWorker(WorkerSettings(**(settings | changes)), catalog, used_store, key, asyncio.Event())
        task = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()
            await task

    return run
