"""One tenant's job and revisions, brought to where the keeper finds them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from openmint.adapters.keys import checkpoint_key
from openmint.adapters.store import Store
from openmint.catalog import Catalog, bases, checkpoints, jobs, revisions
from openmint.catalog.rows import Job, Revision
from openmint.identifiers import digest_from_hex


@dataclass
class Tenancy:
    """Short ways to things in a wanted state."""

    catalog: Catalog
    made: int = 0

    async def accept(self) -> Job:
        self.made += 1
        async with self.catalog.transaction() as conn:
            job, _ = await jobs.accept_job(
                conn,
                service="gateway",
                tenant="acme",
                policy=f"poet-{self.made}",
                base="tiny",
                spec={},
                idempotency_key=None,
                request_hash=bytes(32),
                request_id=f"request-{self.made}",
            )
        return job

    async def running(self) -> Job:
        await self.accept()
        async with self.catalog.connection() as conn:
            job = await jobs.claim_job(conn, "tiny", "trainer-1", 60)
        assert job is not None
        return job

    async def checkpoint(self, job: Job, step: int, want: bool = False) -> Revision | None:
        async with self.catalog.connection() as conn:
            key = checkpoint_key(job.job_id, job.fence, step)
            _, revision = await checkpoints.commit_checkpoint(
                conn, job.job_id, job.fence, step, key, bytes(32), 10, want
            )
        return revision

    async def complete(self, job: Job) -> None:
        async with self.catalog.connection() as conn:
            await jobs.complete_job(conn, job.job_id, job.fence, 1, 1, None)

    async def pending(self) -> Revision:
        job = await self.running()
        revision = await self.checkpoint(job, 1, want=True)
        await self.complete(job)
        assert revision is not None
        return revision

    async def exported(self, digest: str) -> Revision:
        pending = await self.pending()
        async with self.catalog.connection() as conn:
            held = await revisions.claim_export(conn, "exporter-1", 60, pending.revision_id)
            assert held is not None
            return await revisions.commit_export(conn, held.revision_id, held.fence, digest, {"rank": 8}, 10, 1.0)

    async def retired(self, digest: str) -> Revision:
        exported = await self.exported(digest)
        async with self.catalog.connection() as conn:
            held = await revisions.claim_evaluation(conn, "evaluator-1", 60, exported.revision_id)
            assert held is not None
            await revisions.record_verdict(conn, held.revision_id, held.fence, True, "fine", [])
            return await revisions.retire(conn, held.revision_id, "ann")

    async def execute(self, query: str, *arguments: Any) -> None:
        async with self.catalog.connection() as conn:
            await conn.execute(query, *arguments)

    async def lapse(self, table: str, subject_id: UUID) -> None:
        column = {"jobs": "job_id", "revisions": "revision_id"}[table]
        await self.execute(
            f"update {table} set lease_until = clock_timestamp() - interval '1 s' where {column} = $1", subject_id
        )


@pytest.fixture
async def tenancy(catalog: Catalog) -> Tenancy:
    async with catalog.transaction() as conn:
        await bases.register_base(conn, "tiny", digest_from_hex("b" * 64), "/bases/tiny", {}, {})
    return Tenancy(catalog)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open((tmp_path / "store").as_uri())
