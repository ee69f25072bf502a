"""The database server dies by SIGKILL under an open catalogue, and comes back."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from openmint.catalog import Catalog, migrate, tenants
from openmint.embedded.postgres_server import EmbeddedPostgres
from openmint.errors import CatalogUnavailable

PATIENCE_S = 60.0


@pytest.fixture
async def own_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path_factory.mktemp("own"))
    await asyncio.to_thread(server.start)
    yield server
    await asyncio.to_thread(server.erase)


@pytest.mark.slow
async def test_what_was_committed_is_there_and_the_same_pool_works_on(own_server: EmbeddedPostgres) -> None:
    await migrate(own_server.dsn)
    catalog = await Catalog.open(own_server.dsn)
    async with catalog.transaction() as conn:
        await tenants.ensure_tenant(conn, "acme")
    with pytest.raises(CatalogUnavailable):
        async with catalog.transaction() as conn:
            await tenants.ensure_tenant(conn, "never-committed")
            await asyncio.to_thread(own_server.kill)
            await conn.fetchval("select 1")
    with pytest.raises(CatalogUnavailable):
        async with catalog.connection() as conn:
            await conn.fetchval("select 1")
    await asyncio.to_thread(own_server.start)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                async with catalog.connection() as conn:
                    names = [tenant.tenant for tenant in await tenants.list_tenants(conn)]
                break
            except CatalogUnavailable:
                await asyncio.sleep(0.05)
    assert names == ["acme"]
    await catalog.close()
