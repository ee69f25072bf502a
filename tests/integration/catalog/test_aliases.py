import asyncio
import json
from typing import Any

import pytest

from openmint.catalog import Catalog, aliases, revisions
from openmint.catalog.rows import AliasMove, Revision
from openmint.errors import AliasConflict, AliasFrozen, BadName, NotEligible, NotFound


async def move(
    catalog: Catalog, revision: Revision, expected_version: int | None = None, alias: str = "production"
) -> AliasMove:
    async with catalog.connection() as conn:
        return await aliases.move_alias(
            conn,
            service="gateway",
            policy_id=revision.policy_id,
            alias=alias,
            revision_id=revision.revision_id,
            expected_version=expected_version,
            actor="ann",
            reason="better",
        )


async def roll_back(catalog: Catalog, revision: Revision, **arguments: Any) -> AliasMove:
    async with catalog.connection() as conn:
        return await aliases.roll_back(
            conn,
            service="gateway",
            policy_id=revision.policy_id,
            alias="production",
            actor="ann",
            reason="complaints",
            **arguments,
        )


async def test_a_move_is_kept_told_and_rises_the_version(world: Any, catalog: Catalog) -> None:
    first, second = await world.eligible(), await world.eligible()
    assert (await move(catalog, first, 0)).alias_version == 1
    moved = await move(catalog, second, 1)
    assert (moved.alias_version, moved.changed, moved.target.number) == (2, True, 2)
    assert moved.previous is not None and moved.previous.digest == first.digest
    async with catalog.connection() as conn:
        alias = await aliases.find_alias(conn, first.policy_id, "production")
        history = await aliases.history(conn, first.policy_id, "production")
        body = json.loads(await conn.fetchval("select payload from outbox order by id desc limit 1"))
        assert await aliases.list_aliases(conn, first.policy_id) == [alias]
    assert (alias.revision_id, alias.number, alias.version) == (second.revision_id, 2, 2)
    assert [(entry.version, entry.number, entry.actor) for entry in history] == [(2, 2, "ann"), (1, 1, "ann")]
    assert (body["alias_version"], body["targets"][0]["digest"]) == (2, second.digest)
    assert body["previous"][0]["digest"] == first.digest
    assert body["policy_id"] == str(first.policy_id)


async def test_of_ten_racing_moves_exactly_one_wins(world: Any, catalog: Catalog) -> None:
    first, second = await world.eligible(), await world.eligible()
    await move(catalog, first)
    outcomes = await asyncio.gather(*(move(catalog, second, 1) for _ in range(10)), return_exceptions=True)
    assert sum(isinstance(outcome, AliasMove) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, AliasConflict) for outcome in outcomes) == 9
    assert (await world.subjects()).count("alias.moved") == 2


async def test_of_ten_racing_first_moves_exactly_one_wins(world: Any, catalog: Catalog) -> None:
    revision = await world.eligible()
    outcomes = await asyncio.gather(*(move(catalog, revision, 0) for _ in range(10)), return_exceptions=True)
    assert sum(isinstance(outcome, AliasMove) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, AliasConflict) for outcome in outcomes) == 9


async def test_a_move_to_where_it_points_changes_and_tells_nothing(world: Any, catalog: Catalog) -> None:
    revision = await world.eligible()
    await move(catalog, revision)
    again = await move(catalog, revision)
    assert (again.changed, again.alias_version) == (False, 1)
    assert (await world.subjects()).count("alias.moved") == 1


async def test_an_alias_moves_only_to_eligible_revisions_of_its_policy(world: Any, catalog: Catalog) -> None:
    rejected, exported = await world.judged(passed=False), await world.exported()
    other = await world.eligible("painter")
    for revision in (rejected, exported):
        with pytest.raises(NotEligible, match=str(revision.state)):
            await move(catalog, revision)
    async with catalog.connection() as conn:
        with pytest.raises(NotFound):
            await aliases.move_alias(
                conn,
                service="gateway",
                policy_id=rejected.policy_id,
                alias="production",
                revision_id=other.revision_id,
                expected_version=None,
                actor="ann",
                reason="",
            )
    assert "alias.moved" not in await world.subjects()


async def test_a_refused_move_leaves_the_callers_transaction_usable(world: Any, catalog: Catalog) -> None:
    revision = await world.exported()
    async with catalog.transaction() as conn:
        with pytest.raises(NotEligible):
            await aliases.move_alias(
                conn,
                service="gateway",
                policy_id=revision.policy_id,
                alias="canary",
                revision_id=revision.revision_id,
                expected_version=None,
                actor="ann",
                reason="",
            )
        assert await aliases.list_aliases(conn, revision.policy_id) == []


@pytest.mark.parametrize("alias", ["7", "step-400", "Production", "", "a b", "x" * 64])
async def test_a_name_that_reads_as_something_else_cannot_be_an_alias(world: Any, catalog: Catalog, alias: str) -> None:
    revision = await world.eligible()
    with pytest.raises(BadName):
        await move(catalog, revision, alias=alias)


async def test_roll_back_is_one_more_move_to_the_former_revision(world: Any, catalog: Catalog) -> None:
    first, second = await world.eligible(), await world.eligible()
    await move(catalog, first)
    await move(catalog, second)
    back = await roll_back(catalog, first)
    assert (back.alias_version, back.target.number) == (3, 1)
    async with catalog.connection() as conn:
        history = await aliases.history(conn, first.policy_id, "production")
    assert [entry.number for entry in history] == [1, 2, 1]


async def test_roll_back_skips_what_is_no_longer_eligible(world: Any, catalog: Catalog) -> None:
    made = [await world.eligible() for _ in range(3)]
    for revision in made:
        await move(catalog, revision)
    async with catalog.connection() as conn:
        await revisions.quarantine(conn, made[1].revision_id, "bad", "scheduler")
    assert (await roll_back(catalog, made[0])).target.number == 1


async def test_roll_back_to_a_number(world: Any, catalog: Catalog) -> None:
    made = [await world.eligible() for _ in range(3)]
    for revision in made:
        await move(catalog, revision)
    assert (await roll_back(catalog, made[0], to_number=1, expected_version=3)).target.number == 1
    with pytest.raises(NotFound, match="number 9"):
        await roll_back(catalog, made[0], to_number=9)
    with pytest.raises(AliasConflict):
        await roll_back(catalog, made[0], to_number=2, expected_version=3)


async def test_with_nothing_before_there_is_no_roll_back(world: Any, catalog: Catalog) -> None:
    revision = await world.eligible()
    with pytest.raises(NotFound):
        await roll_back(catalog, revision)
    await move(catalog, revision)
    with pytest.raises(NotEligible, match="no earlier revision"):
        await roll_back(catalog, revision)


async def test_a_frozen_alias_moves_for_nobody_until_it_is_thawed(world: Any, catalog: Catalog) -> None:
    first, second = await world.eligible(), await world.eligible()
    await move(catalog, first)
    await move(catalog, second)
    keywords = {"service": "gateway", "policy_id": first.policy_id, "alias": "production", "actor": "ann"}
    async with catalog.connection() as conn:
        frozen = await aliases.freeze(conn, **keywords, reason="holidays", expected_version=2)
        assert (frozen.alias_version, frozen.frozen, frozen.changed) == (3, True, True)
        assert not (await aliases.freeze(conn, **keywords, reason="holidays")).changed
        body = json.loads(await conn.fetchval("select payload from outbox order by id desc limit 1"))
        with pytest.raises(AliasConflict):
            await aliases.thaw(conn, **keywords, reason="", expected_version=2)
    assert (body["frozen"], body["alias_version"], body["targets"][0]["number"]) == (True, 3, 2)
    with pytest.raises(AliasFrozen):
        await move(catalog, first)
    with pytest.raises(AliasFrozen):
        await roll_back(catalog, first)
    async with catalog.connection() as conn:
        assert (await aliases.thaw(conn, **keywords, reason="back")).alias_version == 4
    assert (await roll_back(catalog, first)).alias_version == 5


async def test_an_alias_that_is_not_there_cannot_be_frozen(world: Any, catalog: Catalog) -> None:
    revision = await world.eligible()
    async with catalog.connection() as conn:
        with pytest.raises(NotFound):
            await aliases.freeze(
                conn, service="gateway", policy_id=revision.policy_id, alias="canary", actor="ann", reason=""
            )
