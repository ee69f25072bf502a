from typing import Any

import pytest

from openmint.catalog import Catalog, aliases, revisions
from openmint.catalog.resolution import Resolution
from openmint.catalog.rows import Revision
from openmint.errors import NotEligible, NotFound, Quarantined
from openmint.identifiers import parse_selector


async def resolve(catalog: Catalog, selector: str, tenant: str = "acme", policy: str = "poet") -> Resolution:
    async with catalog.connection() as conn:
        return await revisions.resolve(conn, tenant, policy, parse_selector(selector))


async def point(catalog: Catalog, revision: Revision, alias: str = "production") -> None:
    async with catalog.connection() as conn:
        await aliases.move_alias(
            conn,
            service="gateway",
            policy_id=revision.policy_id,
            alias=alias,
            revision_id=revision.revision_id,
            expected_version=None,
            actor="ann",
            reason="",
        )


async def test_every_kind_of_name_finds_the_revision(world: Any, catalog: Catalog) -> None:
    first, second = await world.eligible(step=5), await world.eligible(step=7)
    await point(catalog, second)
    by_alias = await resolve(catalog, "production")
    assert (by_alias.revision_id, by_alias.digest, by_alias.number) == (second.revision_id, second.digest, 2)
    assert (by_alias.alias_version, by_alias.base, by_alias.rank, by_alias.adapter_bytes) == (1, "tiny", 8, 1000)
    assert [target.digest for target in by_alias.targets] == [second.digest]
    assert first.digest is not None
    for selector in ("1", "step-5", first.digest):
        found = await resolve(catalog, selector)
        assert (found.revision_id, found.alias_version, found.targets) == (first.revision_id, None, ())


async def test_a_step_means_the_newest_revision_of_it(world: Any, catalog: Catalog) -> None:
    await world.exported(step=5)
    newest = await world.exported(step=5)
    await world.pending(step=5)
    assert (await resolve(catalog, "step-5")).revision_id == newest.revision_id


async def test_equal_bytes_made_twice_resolve_to_the_newest(world: Any, catalog: Catalog) -> None:
    first, second = await world.exporting(step=5), await world.exporting(step=6)
    digest = world.new_digest()
    async with catalog.connection() as conn:
        for revision in (first, second):
            await revisions.commit_export(conn, revision.revision_id, revision.fence, digest, {"rank": 8}, 10, 1.0)
    assert (await resolve(catalog, digest)).revision_id == second.revision_id


@pytest.mark.parametrize("stage", ["exported", "evaluating", "rejected"])
async def test_what_passed_no_gate_is_addressed_by_number_alone(world: Any, catalog: Catalog, stage: str) -> None:
    revision = await (world.judged(passed=False) if stage == "rejected" else getattr(world, stage)())
    found = await resolve(catalog, "1")
    assert (found.revision_id, found.state) == (revision.revision_id, stage)
    with pytest.raises(NotFound, match="alias 'production'"):
        await resolve(catalog, "production")


async def test_an_alias_on_a_quarantined_revision_answers_with_the_reason(world: Any, catalog: Catalog) -> None:
    revision = await world.eligible()
    await point(catalog, revision)
    async with catalog.connection() as conn:
        await revisions.quarantine(conn, revision.revision_id, "answers with NaN", "scheduler")
    for selector in ("production", "1", "step-5"):
        with pytest.raises(Quarantined, match="answers with NaN"):
            await resolve(catalog, selector)
    async with catalog.connection() as conn:
        await revisions.release_quarantine(conn, revision.revision_id, "ann")
    assert (await resolve(catalog, "production")).digest == revision.digest


async def test_a_retired_revision_is_not_served(world: Any, catalog: Catalog) -> None:
    revision = await world.eligible()
    async with catalog.connection() as conn:
        await revisions.retire(conn, revision.revision_id, "ann")
    with pytest.raises(NotEligible, match="retired"):
        await resolve(catalog, "1")


async def test_what_is_not_exported_yet_is_not_found(world: Any, catalog: Catalog) -> None:
    await world.pending()
    with pytest.raises(NotFound):
        await resolve(catalog, "step-5")
    with pytest.raises(NotFound):
        await resolve(catalog, "1")


async def test_another_tenants_policy_and_digest_are_not_found(world: Any, catalog: Catalog) -> None:
    theirs = await world.eligible(tenant="rival")
    await point(catalog, theirs)
    mine = await world.eligible("painter")
    assert theirs.digest is not None and mine.number == 1
    with pytest.raises(NotFound, match="acme/poet"):
        await resolve(catalog, "production")
    with pytest.raises(NotFound):
        await resolve(catalog, theirs.digest, policy="painter")
    assert (await resolve(catalog, "production", tenant="rival")).digest == theirs.digest


async def test_numbers_beyond_the_column_are_not_found(world: Any, catalog: Catalog) -> None:
    await world.exported()
    for selector in ("9999999999", "step-9999999999"):
        with pytest.raises(NotFound):
            await resolve(catalog, selector)
