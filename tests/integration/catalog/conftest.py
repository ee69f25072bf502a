"""A tenant's things in the catalogue, made on demand by the catalogue's own functions."""

import hashlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg
import pytest

from openmint.catalog import Catalog, bases, checkpoints, jobs, migrate, revisions, tenants
from openmint.catalog.rows import Checkpoint, Job, Revision
from openmint.identifiers import digest_from_hex

BASE = "tiny"
LEASE_S = 60.0

WIPE = """
    set session_replication_role = replica;
    do $$ declare name text; begin
        for name in select tablename from pg_tables where schemaname = 'public'
            and tablename not in ('schema_version', 'transitions')
        loop execute format('delete from %I', name); end loop;
    end $$;
    reset session_replication_role
"""
"""Deleting a few rows is ten times cheaper than a database of one's own; these tests are many."""


@pytest.fixture(scope="session")
async def catalog_tests_dsn(postgres_template: str) -> str:
    """One migrated database that the tests of this folder share, one after the other."""
    name = "openmint_catalog_tests"
    connection = await asyncpg.connect(postgres_template, timeout=30)
    await connection.execute(f"create database {name}")
    await connection.close()
    dsn = f"{postgres_template.rpartition('/')[0]}/{name}"
    await migrate(dsn)
    return dsn


@pytest.fixture
async def catalog(catalog_tests_dsn: str) -> AsyncIterator[Catalog]:
    """The catalogue, with nothing in it."""
    opened = await Catalog.open(catalog_tests_dsn, min_size=1, max_size=8)
    async with opened.connection() as conn:
        await conn.execute(WIPE)
    yield opened
    await opened.close()


@dataclass
class World:
    """Short ways to things in a wanted state."""

    catalog: Catalog
    base: str = BASE
    counter: "itertools.count[int]" = field(default_factory=itertools.count)

    async def accept(self, policy: str = "poet", tenant: str = "acme", key: str | None = None) -> Job:
        async with self.catalog.transaction() as conn:
            job, _ = await jobs.accept_job(
                conn,
                service="gateway",
                tenant=tenant,
                policy=policy,
                base=self.base,
                spec={"recipe": "sft", "training": {"steps": 10}},
                idempotency_key=key,
                request_hash=bytes(32),
                request_id=f"request-{next(self.counter)}",
            )
        return job

    async def claim(self, owner: str = "trainer-1", lease_s: float = LEASE_S) -> Job:
        async with self.catalog.connection() as conn:
            job = await jobs.claim_job(conn, self.base, owner, lease_s)
        assert job is not None
        return job

    async def running(self, policy: str = "poet", tenant: str = "acme") -> Job:
        accepted = await self.accept(policy, tenant)
        job = await self.claim()
        assert job.job_id == accepted.job_id
        return job

    async def checkpoint(self, job: Job, step: int = 5, want: bool = True) -> tuple[Checkpoint, Revision | None]:
        async with self.catalog.connection() as conn:
            return await checkpoints.commit_checkpoint(
                conn, job.job_id, job.fence, step, f"checkpoints/{job.job_id}/{step}", bytes(32), 100, want
            )

    async def pending(self, policy: str = "poet", tenant: str = "acme", step: int = 5) -> Revision:
        job = await self.running(policy, tenant)
        _, revision = await self.checkpoint(job, step)
        async with self.catalog.connection() as conn:
            await jobs.complete_job(conn, job.job_id, job.fence, step, 100, 0.5)
        assert revision is not None
        return revision

    async def exporting(self, policy: str = "poet", tenant: str = "acme", step: int = 5) -> Revision:
        pending = await self.pending(policy, tenant, step)
        async with self.catalog.connection() as conn:
            revision = await revisions.claim_export(conn, "exporter-1", LEASE_S, pending.revision_id)
        assert revision is not None
        return revision

    async def exported(self, policy: str = "poet", tenant: str = "acme", step: int = 5) -> Revision:
        revision = await self.exporting(policy, tenant, step)
        async with self.catalog.connection() as conn:
            return await revisions.commit_export(
                conn, revision.revision_id, revision.fence, self.new_digest(), {"rank": 8}, 1000, 3.0
            )

    async def evaluating(self, policy: str = "poet", tenant: str = "acme", step: int = 5) -> Revision:
        exported = await self.exported(policy, tenant, step)
        async with self.catalog.connection() as conn:
            revision = await revisions.claim_evaluation(conn, "evaluator-1", LEASE_S, exported.revision_id)
        assert revision is not None
        return revision

    async def judged(self, passed: bool, policy: str = "poet", tenant: str = "acme", step: int = 5) -> Revision:
        revision = await self.evaluating(policy, tenant, step)
        async with self.catalog.connection() as conn:
            return await revisions.record_verdict(conn, revision.revision_id, revision.fence, passed, "as told", [])

    async def eligible(self, policy: str = "poet", tenant: str = "acme", step: int = 5) -> Revision:
        return await self.judged(True, policy, tenant, step)

    async def lapse_job(self, job_id: UUID) -> None:
        """Let the job's lease have run out."""
        async with self.catalog.connection() as conn:
            await conn.execute(
                "update jobs set lease_until = clock_timestamp() - interval '1 s' where job_id = $1", job_id
            )

    async def lapse_revision(self, revision_id: UUID) -> None:
        """Let the revision's lease have run out."""
        async with self.catalog.connection() as conn:
            await conn.execute(
                "update revisions set lease_until = clock_timestamp() - interval '1 s' where revision_id = $1",
                revision_id,
            )

    async def subjects(self) -> list[str]:
        """`area.verb` of every fact in the outbox, in order."""
        async with self.catalog.connection() as conn:
            rows = await conn.fetch("select subject from outbox order by id")
        return [".".join(row["subject"].split(".")[1:3]) for row in rows]

    def new_digest(self) -> str:
        return digest_from_hex(hashlib.sha256(str(next(self.counter)).encode()).hexdigest())


@pytest.fixture
async def world(catalog: Catalog) -> World:
    """The catalogue with one base model and the tenants acme and rival."""
    async with catalog.transaction() as conn:
        await bases.register_base(conn, BASE, digest_from_hex("b" * 64), "/bases/tiny", {"layers.0.q_proj": (4, 4)}, {})
        await tenants.ensure_tenant(conn, "acme")
        await tenants.ensure_tenant(conn, "rival")
    return World(catalog)
