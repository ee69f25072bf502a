import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from openmint.catalog import Catalog
from openmint.catalog.migrate import migrate, migration_files
from openmint.errors import CatalogUnavailable, Conflict
from openmint.identifiers import new_id


@pytest.fixture
async def empty_dsn(postgres_dsn: str) -> AsyncIterator[str]:
    """A database in which nothing is."""
    name = f"empty_{new_id().hex}"
    parts = urlsplit(postgres_dsn)
    admin = await asyncpg.connect(urlunsplit(parts._replace(path="/postgres")))
    await admin.execute(f"create database {name}")
    yield urlunsplit(parts._replace(path=f"/{name}"))
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


async def test_of_four_racing_runners_one_applies_everything(empty_dsn: str) -> None:
    applied = await asyncio.gather(*(migrate(empty_dsn) for _ in range(4)))
    names = [name for name, _ in migration_files()]
    assert sorted(applied) == [[], [], [], names]
    assert await migrate(empty_dsn) == []


async def test_a_migration_that_was_changed_afterwards_is_refused(empty_dsn: str) -> None:
    await migrate(empty_dsn)
    connection = await asyncpg.connect(empty_dsn)
    await connection.execute("update schema_version set sha256 = $1", bytes(32))
    await connection.close()
    with pytest.raises(Conflict, match=r"0001_catalog\.sql"):
        await migrate(empty_dsn)


async def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(CatalogUnavailable):
        await migrate("postgresql://nobody@127.0.0.1:1/nothing")


async def test_the_fixture_is_fully_migrated(catalog: Catalog) -> None:
    assert await migrate(catalog.dsn) == []
