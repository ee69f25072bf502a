"""Bring a database to the newest structure: numbered SQL files, each applied once, in order, in its own transaction."""

import asyncio
import hashlib
from importlib import resources

import asyncpg
import structlog

from openmint.errors import CatalogUnavailable, Conflict

log = structlog.get_logger(__name__)

MIGRATION_LOCK = 0x6F70656E
"""The advisory lock of whoever migrates; `open` in ASCII."""

LOCK_POLL_S = 0.05
LOCK_PATIENCE_S = 120.0
"""Longer than any migration takes; then something is stuck, and waiting on would hide it."""


def migration_files() -> list[tuple[str, str]]:
    """Name and text of every migration, in the order in which they apply."""
    folder = resources.files("openmint.catalog") / "migrations"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(name, (folder / name).read_text(encoding="utf-8")) for name in names]


async def migrate(dsn: str) -> list[str]:
    """Apply what is missing and return the names of the files that this call applied.

    Any number of processes may call it at once: one applies, the others wait and find nothing to do.
    Raises: CatalogUnavailable; Conflict when a file that was applied has been changed since.
    """
    try:
        connection = await asyncpg.connect(dsn, timeout=30)
    except (OSError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError) as error:
        raise CatalogUnavailable(f"can't connect to the catalogue: {error}", retry_after_s=1.0) from error
    try:
        return await _apply_missing(connection)
    finally:
        await connection.close()


async def _apply_missing(connection: asyncpg.Connection) -> list[str]:
    await _lock(connection)
    await connection.execute(
        "create table if not exists schema_version ("
        " name text primary key, sha256 bytea not null, applied_at timestamptz not null default clock_timestamp())"
    )
    known = {row["name"]: row["sha256"] for row in await connection.fetch("select name, sha256 from schema_version")}
    applied: list[str] = []
    for name, text in migration_files():
        sha256 = hashlib.sha256(text.encode()).digest()
        if name in known:
            if known[name] != sha256:
                raise Conflict(f"migration {name} was applied with other content; write a new file instead")
            continue
        async with connection.transaction():
            await connection.execute(text)
            await connection.execute("insert into schema_version (name, sha256) values ($1, $2)", name, sha256)
        applied.append(name)
        log.info("migration.applied", migration=name)
    return applied


async def _lock(connection: asyncpg.Connection) -> None:
    # A blocking lock call would hold a snapshot, which CREATE INDEX CONCURRENTLY in another runner waits for.
    async with asyncio.timeout(LOCK_PATIENCE_S):
        while not await connection.fetchval("select pg_try_advisory_lock($1)", MIGRATION_LOCK):
            await asyncio.sleep(LOCK_POLL_S)
