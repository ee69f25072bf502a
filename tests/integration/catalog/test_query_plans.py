"""No query of the hot paths reads a table from end to end, with 200,000 policies in it.

What is counted is the rows that a transaction really read, not what a plan promises.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from openmint.catalog import Catalog, aliases, checkpoints, due, expiry, jobs, policies, quotas, revisions
from openmint.catalog import stored_files as files
from openmint.identifiers import ByAlias, ByDigest, ByNumber, ByStep, digest_from_bytes

pytestmark = pytest.mark.slow

POLICIES = 200_000
TENANTS = 100
WAITING = 10_000
"""Jobs accepted, revisions pending, and revisions exported; each."""

MAX_ROWS_READ = 2_500
"""A page, or a look at the few oldest of each of a hundred tenants; a hundredth of the table."""

WATCHED = ("policies", "jobs", "revisions", "aliases", "checkpoints", "alias_history")
Act = Callable[[Any], Awaitable[Any]]


@dataclass(frozen=True)
class Crowd:
    catalog: Catalog
    policy_ids: list[UUID]

    async def rows_read(self, act: Act) -> int:
        """Rows that `act` read of the large tables, all together."""
        async with self.catalog.transaction() as conn:
            before = await _rows_so_far(conn)
            await act(conn)
            return await _rows_so_far(conn) - before


async def _rows_so_far(conn: Any) -> int:
    # What the connection's earlier transactions read is in here too, until the server has gathered it.
    return await conn.fetchval(
        "select coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::int from pg_stat_xact_user_tables"
        " where relname = any($1::text[])",
        list(WATCHED),
    )


@pytest.fixture
async def crowd(fresh_dsn: str) -> AsyncIterator[Crowd]:
    connection = await asyncpg.connect(fresh_dsn, timeout=60)
    await connection.execute("set session_replication_role = replica")
    now = datetime.now(UTC) - timedelta(hours=1)
    lots = [UUID(int=(1 << 100) + number) for number in range(POLICIES)]
    digests = [number.to_bytes(32, "big") for number in range(POLICIES)]
    tenants = [f"tenant-{number}" for number in range(TENANTS)]
    await connection.copy_records_to_table(
        "tenants", records=[(name, 1.0) for name in tenants], columns=["tenant", "weight"]
    )
    await connection.execute(
        "insert into base_models (base, digest, locator, modules, config) values ('tiny', $1, '', '{}', '{}')",
        bytes(32),
    )

    def tenant(number: int) -> str:
        return tenants[number % TENANTS]

    await connection.copy_records_to_table(
        "policies",
        records=((lots[n], tenant(n), f"policy-{n:06d}", "tiny", 2, now) for n in range(POLICIES)),
        columns=["policy_id", "tenant", "name", "base", "next_number", "created_at"],
    )

    def job_state(number: int) -> str:
        return "accepted" if number < WAITING else "completed"

    await connection.copy_records_to_table(
        "jobs",
        records=(
            (
                lots[n],
                tenant(n),
                lots[n],
                "tiny",
                "{}",
                f"r{n}",
                bytes(32),
                "accepted" if n < WAITING else "completed",
                now,
            )
            for n in range(POLICIES)
        ),
        columns=[
            "job_id",
            "tenant",
            "policy_id",
            "base",
            "spec",
            "request_id",
            "request_hash",
            "state",
            "announced_at",
        ],
    )
    await connection.copy_records_to_table(
        "checkpoints",
        records=((lots[n], lots[n], 1, 1, f"k{n}", bytes(32), 1) for n in range(POLICIES)),
        columns=["checkpoint_id", "job_id", "fence", "step", "key", "sha256", "checkpoint_bytes"],
    )

    def state(number: int) -> str:
        return "pending" if number < WAITING else "exported" if number < 2 * WAITING else "eligible"

    await connection.copy_records_to_table(
        "revisions",
        records=(
            (lots[n], tenant(n), lots[n], "tiny", lots[n], lots[n], 1, state(n), *_artefact(n, digests), now, now)
            for n in range(POLICIES)
        ),
        columns=[
            "revision_id", "tenant", "policy_id", "base", "job_id", "checkpoint_id", "step", "state",
            "number", "digest", "rank", "adapter_bytes", "changed_at", "announced_at",
        ],
    )  # fmt: skip
    await connection.copy_records_to_table(
        "aliases",
        records=((lots[n], "production", lots[n], 1) for n in range(2 * WAITING, POLICIES)),
        columns=["policy_id", "alias", "revision_id", "version"],
    )
    await connection.execute("vacuum analyze")
    await connection.close()
    catalog = await Catalog.open(fresh_dsn)
    yield Crowd(catalog, lots)
    await catalog.close()


def _artefact(number: int, digests: list[bytes]) -> tuple[Any, ...]:
    return (None, None, None, None) if number < WAITING else (1, digests[number], 8, 1000)


async def test_hot_queries_read_few_rows(crowd: Crowd) -> None:
    number = POLICIES - 17
    tenant, name, subject = f"tenant-{number % TENANTS}", f"policy-{number:06d}", crowd.policy_ids[number]
    digest = number.to_bytes(32, "big")
    acts: dict[str, Act] = {
        "resolve by alias": lambda conn: revisions.resolve(conn, tenant, name, ByAlias("production")),
        "resolve by number": lambda conn: revisions.resolve(conn, tenant, name, ByNumber(1)),
        "resolve by step": lambda conn: revisions.resolve(conn, tenant, name, ByStep(1)),
        "resolve by digest": lambda conn: revisions.resolve(conn, tenant, name, ByDigest(digest_from_bytes(digest))),
        "claim a job": lambda conn: jobs.claim_job(conn, "tiny", "trainer", 60),
        "claim an export": lambda conn: revisions.claim_export(conn, "exporter", 60),
        "claim an evaluation": lambda conn: revisions.claim_evaluation(conn, "evaluator", 60),
        "claim a named evaluation": lambda conn: revisions.claim_evaluation(
            conn, "evaluator", 60, crowd.policy_ids[WAITING + 7]
        ),
        "heartbeat": lambda conn: _heartbeat(conn),
        "list policies": lambda conn: policies.list_policies(conn, tenant, "policy-100000"),
        "list jobs": lambda conn: jobs.list_jobs(conn, tenant, subject),
        "list jobs of a policy": lambda conn: jobs.list_jobs(conn, tenant, policy_id=subject),
        "list revisions": lambda conn: revisions.list_revisions(conn, subject),
        "count open jobs": lambda conn: quotas.count_open_jobs(conn, tenant, 100),
        "alias history": lambda conn: aliases.history(conn, subject, "production"),
        "latest checkpoint": lambda conn: checkpoints.latest_checkpoint(conn, subject),
        "retired revisions": lambda conn: revisions.retired_revisions(conn, 0),
        "exhausted jobs": lambda conn: expiry.end_exhausted_jobs(conn, "keeper"),
        "exhausted revisions": lambda conn: expiry.end_exhausted_revisions(conn, "keeper"),
        "unnamed keys": lambda conn: files.unnamed_keys(conn, [f"revisions/{digest.hex()}/x", "checkpoints/x"]),
        "due steps": lambda conn: due.due_steps(conn, 0, 200),
        "quarantine": lambda conn: revisions.quarantine(conn, subject, "bad", "scheduler"),
    }  # fmt: skip
    read = {name: await crowd.rows_read(act) for name, act in acts.items()}
    bounds = dict.fromkeys(acts, MAX_ROWS_READ) | {"due steps": 6 * WAITING}
    assert {name: rows for name, rows in read.items() if rows > bounds[name]} == {}


async def _heartbeat(conn: Any) -> None:
    job = await jobs.claim_job(conn, "tiny", "trainer", 60)
    assert job is not None
    await jobs.heartbeat_job(conn, job.job_id, job.fence, 60)
