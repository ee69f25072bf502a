import json
from typing import Any
from uuid import uuid4

import pytest

from openmint.catalog import Catalog, aliases, evaluations, expiry, revisions
from openmint.catalog.rows import EvaluationDraft, RevisionState
from openmint.catalog.transitions import MAX_TRIES
from openmint.errors import BadRequest, Conflict, Fenced, NotEligible, NotFound
from openmint.events import Cause
from openmint.identifiers import new_id

CAUSE = Cause(code="bad_adapter", detail="layers.0.q_proj.lora_A is not finite", fault="server")


async def test_export_gives_digest_and_running_number(world: Any, catalog: Catalog) -> None:
    first, second = await world.exported("poet"), await world.exported("poet")
    other = await world.exported("painter")
    assert [first.number, second.number, other.number] == [1, 2, 1]
    assert first.digest is not None and first.rank == 8
    async with catalog.connection() as conn:
        body = json.loads(
            await conn.fetchval("select payload from outbox where subject like '%revision.exported%' order by id")
        )
    assert (body["digest"], body["number"], body["export_ms"]) == (first.digest, 1, 3.0)


async def test_export_told_twice_gives_one_number(world: Any, catalog: Catalog) -> None:
    revision = await world.exporting()
    digest = world.new_digest()
    async with catalog.connection() as conn:
        arguments = (conn, revision.revision_id, revision.fence, digest, {"rank": 8}, 10, 1.0)
        assert await revisions.commit_export(*arguments) == await revisions.commit_export(*arguments)
    assert (await world.subjects()).count("revision.exported") == 1


async def test_a_manifest_without_a_rank_is_refused(world: Any, catalog: Catalog) -> None:
    revision = await world.exporting()
    async with catalog.connection() as conn:
        with pytest.raises(BadRequest, match="names no rank"):
            await revisions.commit_export(conn, revision.revision_id, revision.fence, world.new_digest(), {}, 10, 1.0)


async def test_a_replaced_exporter_can_write_nothing(world: Any, catalog: Catalog) -> None:
    zombie = await world.exporting()
    await world.lapse_revision(zombie.revision_id)
    async with catalog.connection() as conn:
        holder = await revisions.claim_export(conn, "exporter-2", 60, zombie.revision_id)
        assert holder is not None and holder.fence == zombie.fence + 1
        with pytest.raises(Fenced):
            await revisions.commit_export(conn, zombie.revision_id, zombie.fence, world.new_digest(), {"rank": 8}, 1, 1)
        with pytest.raises(Fenced):
            await revisions.fail_export(conn, zombie.revision_id, zombie.fence, CAUSE)
        with pytest.raises(Fenced):
            await revisions.heartbeat_revision(conn, zombie.revision_id, zombie.fence, 60)
        with pytest.raises(Fenced):
            await revisions.release_revision(conn, zombie.revision_id, zombie.fence)
        assert await revisions.find_revision(conn, zombie.revision_id) == holder
        done = await revisions.commit_export(
            conn, holder.revision_id, holder.fence, world.new_digest(), {"rank": 8}, 1, 1
        )
    assert done.number == 1


async def test_a_replaced_evaluator_can_write_nothing(world: Any, catalog: Catalog) -> None:
    zombie = await world.evaluating()
    await world.lapse_revision(zombie.revision_id)
    async with catalog.connection() as conn:
        holder = await revisions.claim_evaluation(conn, "evaluator-2", 60)
        assert holder is not None
        with pytest.raises(Fenced):
            await revisions.record_verdict(conn, zombie.revision_id, zombie.fence, True, "fine", [])
        assert await revisions.find_revision(conn, zombie.revision_id) == holder


async def test_a_held_revision_is_not_claimed_again(world: Any, catalog: Catalog) -> None:
    revision = await world.exporting()
    async with catalog.connection() as conn:
        await revisions.heartbeat_revision(conn, revision.revision_id, revision.fence, 60)
        assert await revisions.claim_export(conn, "exporter-2", 60, revision.revision_id) is None
        assert await revisions.claim_export(conn, "exporter-2", 60) is None
        assert await revisions.claim_evaluation(conn, "evaluator-1", 60, revision.revision_id) is None


async def test_a_released_revision_is_claimable_at_once(world: Any, catalog: Catalog) -> None:
    revision = await world.exporting()
    async with catalog.connection() as conn:
        await revisions.release_revision(conn, revision.revision_id, revision.fence)
        again = await revisions.claim_export(conn, "exporter-2", 60)
    assert again is not None
    assert (again.revision_id, again.tries) == (revision.revision_id, 1)


async def test_tries_count_per_stage(world: Any, catalog: Catalog) -> None:
    revision = await world.exporting()
    await world.lapse_revision(revision.revision_id)
    async with catalog.connection() as conn:
        second = await revisions.claim_export(conn, "exporter-2", 60)
        assert second is not None and second.tries == 2
        await revisions.commit_export(conn, second.revision_id, second.fence, world.new_digest(), {"rank": 8}, 1, 1)
        evaluation = await revisions.claim_evaluation(conn, "evaluator-1", 60)
    assert evaluation is not None and evaluation.tries == 1


async def test_an_export_that_cannot_succeed_ends_failed(world: Any, catalog: Catalog) -> None:
    revision = await world.exporting()
    async with catalog.connection() as conn:
        failed = await revisions.fail_export(conn, revision.revision_id, revision.fence, CAUSE)
        assert await revisions.claim_export(conn, "exporter-2", 60) is None
    assert (failed.state, failed.cause, failed.number) == (RevisionState.FAILED, CAUSE, None)
    assert (await world.subjects())[-1] == "revision.failed"


async def test_a_verdict_comes_with_its_evaluations(world: Any, catalog: Catalog) -> None:
    revision = await world.evaluating()
    draft = EvaluationDraft(
        evaluation_id=new_id(),
        suite="parity",
        passed=True,
        summary="the engine agrees with PEFT",
        scores={"max_abs": 2e-4},
        rests_on={"base": "tiny", "pool": "gate-fp32"},
        report_key="evaluations/x/report.json",
    )
    async with catalog.connection() as conn:
        verdict = await revisions.record_verdict(conn, revision.revision_id, revision.fence, True, "passed", [draft])
        kept = await evaluations.list_evaluations(conn, revision.revision_id)
        assert await evaluations.find_evaluation(conn, draft.evaluation_id) == kept[0]
        with pytest.raises(NotFound):
            await evaluations.find_evaluation(conn, new_id())
        body = json.loads(await conn.fetchval("select payload from outbox order by id desc limit 1"))
    assert verdict.state is RevisionState.ELIGIBLE
    assert [(row.suite, row.scores, row.rests_on, row.fence) for row in kept] == [
        ("parity", {"max_abs": 2e-4}, {"base": "tiny", "pool": "gate-fp32"}, revision.fence)
    ]
    assert body["evaluation_id"] == str(draft.evaluation_id)


async def test_a_rejected_revision_may_be_waived_by_a_named_person(world: Any, catalog: Catalog) -> None:
    revision = await world.judged(passed=False)
    assert revision.state is RevisionState.REJECTED
    async with catalog.connection() as conn:
        with pytest.raises(BadRequest):
            await revisions.waive(conn, revision.revision_id, "ann", "")
        waived = await revisions.waive(conn, revision.revision_id, "ann", "the held-out set is stale")
        with pytest.raises(NotEligible):
            await revisions.waive(conn, revision.revision_id, "ann", "again")
        body = json.loads(await conn.fetchval("select payload from outbox order by id desc limit 1"))
    assert (waived.state, waived.waived_by) == (RevisionState.ELIGIBLE, "ann")
    assert body["waived_by"] == "ann"


async def test_an_evaluation_whose_tries_are_used_up_is_a_rejection(world: Any, catalog: Catalog) -> None:
    revision = await world.evaluating()
    async with catalog.transaction() as conn:
        await conn.execute("update revisions set tries = $1", MAX_TRIES)
    await world.lapse_revision(revision.revision_id)
    async with catalog.transaction() as conn:
        assert await revisions.claim_evaluation(conn, "evaluator-2", 60) is None
        ended = await expiry.end_exhausted_revisions(conn, "keeper")
    assert [end.state for end in ended] == [RevisionState.REJECTED]
    assert "never finished" in ended[0].reason
    assert (await world.subjects())[-1] == "revision.rejected"


async def test_an_export_whose_tries_are_used_up_fails(world: Any, catalog: Catalog) -> None:
    revision = await world.exporting()
    async with catalog.transaction() as conn:
        await conn.execute("update revisions set tries = $1", MAX_TRIES)
        assert await expiry.end_exhausted_revisions(conn, "keeper") == []
    await world.lapse_revision(revision.revision_id)
    async with catalog.transaction() as conn:
        ended = await expiry.end_exhausted_revisions(conn, "keeper")
    assert [(end.state, end.cause.fault) for end in ended if end.cause] == [(RevisionState.FAILED, "server")]


async def test_an_import_is_held_from_the_start_and_fails_with_its_caller(world: Any, catalog: Catalog) -> None:
    async with catalog.transaction() as conn:
        revision = await revisions.begin_import(conn, "exporter", "acme", "poet", "tiny", "upload-1", "exporter-1", 60)
        lost = await revisions.begin_import(conn, "exporter", "acme", "poet", "tiny", "upload-2", "exporter-1", 60)
        done = await revisions.commit_export(
            conn, revision.revision_id, revision.fence, world.new_digest(), {"rank": 4}, 10, None
        )
    assert (revision.state, revision.fence, done.number) == (RevisionState.EXPORTING, 1, 1)
    await world.lapse_revision(lost.revision_id)
    async with catalog.transaction() as conn:
        assert await revisions.claim_export(conn, "exporter-2", 60) is None
        ended = await expiry.end_exhausted_revisions(conn, "keeper")
    assert [(end.revision_id, end.state) for end in ended] == [(lost.revision_id, RevisionState.FAILED)]


async def test_quarantine_fences_off_who_evaluates_and_release_evaluates_anew(world: Any, catalog: Catalog) -> None:
    revision = await world.evaluating()
    async with catalog.connection() as conn:
        bad = await revisions.quarantine(conn, revision.revision_id, "gives NaN alone, twice", "scheduler")
        again = await revisions.quarantine(conn, revision.revision_id, "another reason", "scheduler")
        with pytest.raises(Fenced):
            await revisions.record_verdict(conn, revision.revision_id, revision.fence, True, "fine", [])
        released = await revisions.release_quarantine(conn, revision.revision_id, "ann")
    assert (bad.state, bad.reason) == (RevisionState.QUARANTINED, "gives NaN alone, twice")
    assert again == bad
    assert released.state is RevisionState.EXPORTED
    assert (await world.subjects()).count("revision.quarantined") == 1


@pytest.mark.parametrize("passed", [True, False])
async def test_release_puts_a_judged_revision_back_to_its_verdict(world: Any, catalog: Catalog, passed: bool) -> None:
    revision = await world.judged(passed)
    async with catalog.connection() as conn:
        await revisions.quarantine(conn, revision.revision_id, "looked bad", "scheduler")
        released = await revisions.release_quarantine(conn, revision.revision_id, "ann", reason="was the engine")
        assert released.state is revision.state
        with pytest.raises(NotEligible):
            await revisions.release_quarantine(conn, revision.revision_id, "ann")


async def test_what_an_alias_points_to_cannot_be_retired(world: Any, catalog: Catalog) -> None:
    revision = await world.eligible()
    async with catalog.connection() as conn:
        await aliases.move_alias(
            conn,
            service="gateway",
            policy_id=revision.policy_id,
            alias="production",
            revision_id=revision.revision_id,
            expected_version=0,
            actor="ann",
            reason="first",
        )
        with pytest.raises(Conflict, match="'production'"):
            await revisions.retire(conn, revision.revision_id, "ann")


async def test_a_retired_revision_leaves_a_tombstone(world: Any, catalog: Catalog) -> None:
    revision = await world.judged(passed=False)
    async with catalog.connection() as conn:
        with pytest.raises(NotEligible):
            await revisions.mark_deleted(conn, revision.revision_id)
        await revisions.retire(conn, revision.revision_id, "ann")
        deleted = await revisions.mark_deleted(conn, revision.revision_id)
    assert (deleted.state, deleted.digest, deleted.number) == (RevisionState.DELETED, revision.digest, 1)
    assert (await world.subjects())[-1] == "revision.retired"


async def test_what_has_no_digest_yet_can_be_neither_quarantined_nor_retired(world: Any, catalog: Catalog) -> None:
    revision = await world.exporting()
    async with catalog.connection() as conn:
        with pytest.raises(NotEligible):
            await revisions.quarantine(conn, revision.revision_id, "bad", "scheduler")
        with pytest.raises(NotEligible):
            await revisions.retire(conn, revision.revision_id, "ann")
        with pytest.raises(NotFound):
            await revisions.quarantine(conn, uuid4(), "bad", "scheduler")


async def test_another_tenants_revision_is_not_found(world: Any, catalog: Catalog) -> None:
    revision = await world.exported(tenant="rival")
    async with catalog.connection() as conn:
        assert (await revisions.find_revision(conn, revision.revision_id, "rival")).tenant == "rival"
        with pytest.raises(NotFound):
            await revisions.find_revision(conn, revision.revision_id, "acme")


async def test_revisions_are_listed_newest_first_in_pages(world: Any, catalog: Catalog) -> None:
    made = [await world.pending("poet") for _ in range(4)]
    async with catalog.connection() as conn:
        first = await revisions.list_revisions(conn, made[0].policy_id, limit=3)
        rest = await revisions.list_revisions(conn, made[0].policy_id, after=first[-1].revision_id)
    assert [row.revision_id for row in first + rest] == [row.revision_id for row in reversed(made)]
