import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from openmint.catalog import Catalog, bases, datasets, leaders, outbox_rows, policies, tenants, usage
from openmint.errors import BadName, CatalogUnavailable, Conflict, NotFound
from openmint.events import JobCancelled
from openmint.identifiers import digest_from_hex, new_id

DIGEST = digest_from_hex("c" * 64)


async def test_a_base_is_registered_once_and_may_move(catalog: Catalog) -> None:
    modules = {"layers.0.q_proj": (8, 4)}
    async with catalog.transaction() as conn:
        assert await bases.register_base(conn, "tiny", DIGEST, "/old", modules, {"hidden": 4})
        assert not await bases.register_base(conn, "tiny", DIGEST, "/new", modules, {"hidden": 4})
        base = await bases.find_base(conn, "tiny")
        assert (base.digest, base.locator, base.modules, base.config) == (DIGEST, "/new", modules, {"hidden": 4})
        assert await bases.list_bases(conn) == [base]
        with pytest.raises(Conflict, match="use another name"):
            await bases.register_base(conn, "tiny", digest_from_hex("d" * 64), "/new", modules, {})
        with pytest.raises(BadName):
            await bases.register_base(conn, "Tiny/1", DIGEST, "/new", modules, {})
        with pytest.raises(NotFound):
            await bases.find_base(conn, "huge")


async def test_racing_makers_of_a_policy_get_the_same_one(world: Any, catalog: Catalog) -> None:
    async def ensure() -> Any:
        async with catalog.transaction() as conn:
            return await policies.ensure_policy(conn, "newcomer", "poet", "tiny")

    made = await asyncio.gather(*(ensure() for _ in range(8)))
    assert len({policy.policy_id for policy in made}) == 1


async def test_policies_are_listed_by_name_in_pages_of_their_tenant(world: Any, catalog: Catalog) -> None:
    async with catalog.transaction() as conn:
        for name in ("c", "a", "b"):
            await policies.ensure_policy(conn, "acme", name, "tiny")
        await policies.ensure_policy(conn, "rival", "z", "tiny")
        first = await policies.list_policies(conn, "acme", limit=2)
        rest = await policies.list_policies(conn, "acme", after=first[-1].name)
        assert [policy.name for policy in first + rest] == ["a", "b", "c"]
        assert await policies.find_policy(conn, "acme", "a") == first[0]
        with pytest.raises(NotFound):
            await policies.find_policy(conn, "acme", "z")
        with pytest.raises(BadName):
            await policies.ensure_policy(conn, "acme", "a.b", "tiny")


async def test_a_tenant_keeps_its_weight(catalog: Catalog) -> None:
    async with catalog.transaction() as conn:
        assert (await tenants.ensure_tenant(conn, "acme")).weight == 1
        assert (await tenants.ensure_tenant(conn, "acme", weight=2.5)).weight == 2.5
        assert (await tenants.ensure_tenant(conn, "acme")).weight == 2.5
        assert await tenants.find_tenant(conn, "acme") in await tenants.list_tenants(conn)
        with pytest.raises(NotFound):
            await tenants.find_tenant(conn, "nobody")


async def test_a_dataset_belongs_to_who_put_it(catalog: Catalog) -> None:
    async with catalog.transaction() as conn:
        first = await datasets.record_dataset(conn, "acme", DIGEST, 3, 120, "datasets/acme/c.jsonl")
        assert await datasets.record_dataset(conn, "acme", DIGEST, 3, 120, "datasets/acme/c.jsonl") == first
        assert await datasets.list_datasets(conn, "acme") == [first]
        with pytest.raises(NotFound):
            await datasets.find_dataset(conn, "rival", DIGEST)


async def test_usage_adds_up_by_model_and_revision(catalog: Catalog) -> None:
    async with catalog.transaction() as conn:
        row = usage.UsageRow("acme", "acme/poet", DIGEST, 1, 10, 5)
        await usage.record_usage(conn, [row, row, usage.UsageRow("acme", "tiny", None, 1, 7, 1)])
        await usage.record_usage(conn, [row])
        sums = await usage.read_usage(conn, "acme", datetime.now(UTC) - timedelta(hours=1))
    assert [(sum_.model, sum_.digest, sum_.requests, sum_.prompt_tokens) for sum_ in sums] == [
        ("acme/poet", DIGEST, 3, 30),
        ("tiny", None, 1, 7),
    ]


async def test_one_leads_and_the_next_has_a_higher_epoch(catalog: Catalog) -> None:
    async with catalog.connection() as first, catalog.connection() as second:
        assert await leaders.take_leadership(first, "tiny", "scheduler-1") == 1
        assert await leaders.take_leadership(second, "tiny", "scheduler-2") is None
        assert await leaders.take_leadership(second, "other", "scheduler-2") == 1
        await leaders.give_up_leadership(first, "tiny")
        assert await leaders.take_leadership(second, "tiny", "scheduler-2") == 2
        assert not await leaders.still_leads(first, "tiny", 1)
        assert await leaders.still_leads(second, "tiny", 2)


async def test_the_lead_ends_with_the_connection(catalog: Catalog) -> None:
    lost = await asyncpg.connect(catalog.dsn)
    assert await leaders.take_leadership(lost, "tiny", "scheduler-1") == 1
    await lost.close()
    async with catalog.connection() as conn, asyncio.timeout(10):
        epoch = None
        while epoch is None:
            epoch = await leaders.take_leadership(conn, "tiny", "scheduler-2")
            await asyncio.sleep(0.01)
    assert epoch == 2


async def test_an_event_is_handled_once_by_each_consumer(catalog: Catalog) -> None:
    event_id = new_id()
    async with catalog.transaction() as conn:
        assert await outbox_rows.first_time(conn, "exporter", event_id)
    with pytest.raises(RuntimeError):
        async with catalog.transaction() as conn:
            assert not await outbox_rows.first_time(conn, "exporter", event_id)
            assert await outbox_rows.first_time(conn, "evaluator", event_id)
            raise RuntimeError
    async with catalog.transaction() as conn:
        assert await outbox_rows.first_time(conn, "evaluator", event_id)
        assert await outbox_rows.prune_inbox(conn, 3600) == 0
        assert await outbox_rows.prune_inbox(conn, 0) == 2


async def test_the_relay_is_woken_once_per_statement(catalog: Catalog) -> None:
    heard: list[Any] = []
    listener = await asyncpg.connect(catalog.dsn)
    await listener.add_listener("openmint_outbox", lambda *notice: heard.append(notice[3]))
    fact = JobCancelled(tenant="acme", job_id=new_id(), policy="poet", base="tiny")
    async with catalog.transaction() as conn:
        await outbox_rows.append(conn, "trainer", fact)
        await outbox_rows.append(conn, "exporter", fact)
        assert await outbox_rows.oldest_unsent_s(conn) >= 0
    async with asyncio.timeout(10):
        while len(heard) < 2:
            await asyncio.sleep(0.01)
    assert sorted(heard) == ["exporter", "trainer"]
    await listener.close()


async def test_a_catalogue_that_is_not_there_is_named() -> None:
    with pytest.raises(CatalogUnavailable):
        await Catalog.open("postgresql://nobody@127.0.0.1:1/nothing")


async def test_a_connection_that_breaks_says_to_try_again(catalog: Catalog) -> None:
    with pytest.raises(CatalogUnavailable):
        async with catalog.connection() as conn:
            pid = await conn.fetchval("select pg_backend_pid()")
            async with catalog.connection() as other:
                await other.execute("select pg_terminate_backend($1)", pid)
            while True:
                await conn.fetchval("select pg_sleep(0.01)")
    async with catalog.connection() as conn:
        assert await conn.fetchval("select 1") == 1


async def test_an_error_of_the_caller_stays_what_it_is(catalog: Catalog) -> None:
    with pytest.raises(FileNotFoundError):
        async with catalog.transaction():
            raise FileNotFoundError("not the catalogue's")
