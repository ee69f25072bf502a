"""The worker on a real catalogue; only what an evaluation would answer is given."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from openmint.catalog import aliases, evaluations, revisions
from openmint.catalog.database import Catalog
from openmint.catalog.rows import Revision, RevisionState
from openmint.clock import WallClock
from openmint.endings import end
from openmint.errors import NoEngine
from openmint_evaluator.checks import at_most
from openmint_evaluator.evaluate import report_without_measurement
from openmint_evaluator.report import Report
from openmint_evaluator.subject import Subject
from openmint_evaluator.verdict import Verdict
from openmint_evaluator.worker import EvaluationWorker, WorkerLimits

Export = Callable[..., Awaitable[Revision]]
ON_PASS = {"promotion": {"rule": "on_pass", "alias": "production"}}


class Reports:
    """Reports by key, with every version that was written."""

    def __init__(self) -> None:
        self.written: dict[str, list[Report]] = {}

    async def write_report(self, report: Report) -> str:
        key = f"evaluations/{report.evaluation_id}/report.json"
        self.written.setdefault(key, []).append(report)
        return key

    @property
    def last(self) -> Report:
        return list(self.written.values())[-1][-1]


class Answers:
    """An evaluator that passes, rejects, or has trouble."""

    def __init__(self, outcome: bool | Exception) -> None:
        self.outcome = outcome
        self.subjects: list[Subject] = []
        self.holds = asyncio.Event()
        self.holds.set()
        self.started = asyncio.Event()

    async def evaluate(self, subject: Subject) -> Report:
        self.subjects.append(subject)
        self.started.set()
        await self.holds.wait()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        verdict = Verdict(self.outcome, ("parity holds",) if self.outcome else ("the base answers in its name",))
        report = report_without_measurement(subject, verdict, datetime.now(UTC))
        check = at_most("parity_mean", float("nan") if not self.outcome else 1e-5, 1e-4, "nats", "mean", "too far")
        return report.model_copy(update={"checks": (check,)})


def make_worker(
    catalog: Catalog, reports: Reports, answers: Answers, lease_s: float = 30, retry_s: float = 0.0, tries: int = 3
) -> EvaluationWorker:
    limits = WorkerLimits(lease_s=lease_s, poll_s=0.05, retry_s=retry_s, max_tries=tries)
    return EvaluationWorker(catalog, reports, answers, "evaluator-1", limits, WallClock())  # type: ignore[arg-type]


async def state_of(catalog: Catalog, revision: Revision) -> Revision:
    async with catalog.connection() as conn:
        return await revisions.find_revision(conn, revision.revision_id)


async def facts_of(catalog: Catalog) -> list[tuple[str, dict[str, Any]]]:
    async with catalog.connection() as conn:
        rows = await conn.fetch("select subject, payload from outbox where service = 'evaluator' order by id")
    return [(".".join(row["subject"].split(".")[1:3]), json.loads(row["payload"])) for row in rows]


def digest(number: int) -> str:
    return "sha256:" + f"{number:x}" * 64


async def test_nothing_due_is_no_work(catalog: Catalog) -> None:
    assert not await make_worker(catalog, Reports(), Answers(True)).work_once()


async def test_pass_promotes_in_the_same_transaction_and_the_report_says_so(
    catalog: Catalog, export_revision: Export
) -> None:
    revision, reports = await export_revision(digest(1), ON_PASS), Reports()
    assert await make_worker(catalog, reports, Answers(True)).work_once()
    assert (await state_of(catalog, revision)).state is RevisionState.ELIGIBLE
    names = [name for name, _ in await facts_of(catalog)]
    assert names == ["revision.eligible", "alias.moved"]
    async with catalog.connection() as conn:
        alias = await aliases.find_alias(conn, revision.policy_id, "production")
        (evaluation,) = await evaluations.list_evaluations(conn, revision.revision_id)
    assert alias.revision_id == revision.revision_id
    assert reports.last.promotion == "production moved from nothing to this revision (version 1)"
    assert evaluation.report_key in reports.written
    assert evaluation.rests_on["revision_digest"] == digest(1)


async def test_rejection_tells_why_and_moves_nothing(catalog: Catalog, export_revision: Export) -> None:
    revision, reports = await export_revision(digest(1), ON_PASS), Reports()
    assert await make_worker(catalog, reports, Answers(False)).work_once()
    assert (await state_of(catalog, revision)).state is RevisionState.REJECTED
    ((name, fact),) = await facts_of(catalog)
    assert name == "revision.rejected"
    assert "the base answers in its name" in fact["summary"]
    assert reports.last.promotion.startswith("not promoted")


async def test_manual_rule_leaves_promotion_to_a_person(catalog: Catalog, export_revision: Export) -> None:
    await export_revision(digest(1))
    reports = Reports()
    await make_worker(catalog, reports, Answers(True)).work_once()
    assert "left to a person" in reports.last.promotion
    assert [name for name, _ in await facts_of(catalog)] == ["revision.eligible"]


async def test_frozen_alias_stays_and_report_says_so(catalog: Catalog, export_revision: Export) -> None:
    first, reports = await export_revision(digest(1), ON_PASS), Reports()
    worker = make_worker(catalog, reports, Answers(True))
    await worker.work_once()
    async with catalog.connection() as conn:
        await aliases.freeze(
            conn, service="gateway", policy_id=first.policy_id, alias="production", actor="ada", reason="audit"
        )
    second = await export_revision(digest(2), ON_PASS)
    await worker.work_once()
    assert (await state_of(catalog, second)).state is RevisionState.ELIGIBLE
    assert "frozen" in reports.last.promotion
    async with catalog.connection() as conn:
        assert (await aliases.find_alias(conn, first.policy_id, "production")).revision_id == first.revision_id


async def test_slow_evaluation_does_not_take_an_alias_back(catalog: Catalog, export_revision: Export) -> None:
    older = await export_revision(digest(1), ON_PASS)
    newer = await export_revision(digest(2), ON_PASS)
    async with catalog.connection() as conn:
        claimed = await revisions.claim_evaluation(conn, "another", 30, newer.revision_id)
        assert claimed is not None
        await revisions.record_verdict(conn, newer.revision_id, claimed.fence, True, "fine", [])
        await aliases.move_alias(
            conn, service="gateway", policy_id=newer.policy_id, alias="production", revision_id=newer.revision_id,
            expected_version=0, actor="ada", reason="by hand",
        )  # fmt: skip
    reports, answers = Reports(), Answers(True)
    await make_worker(catalog, reports, answers).work_once()
    assert answers.subjects[0].revision.revision_id == older.revision_id
    assert answers.subjects[0].production is not None
    assert answers.subjects[0].production.number == 2
    assert "stays at revision 2" in reports.last.promotion
    async with catalog.connection() as conn:
        assert (await aliases.find_alias(conn, newer.policy_id, "production")).number == 2


async def test_engine_trouble_leaves_the_revision_until_its_tries_are_used_up(
    catalog: Catalog, export_revision: Export
) -> None:
    revision, reports = await export_revision(digest(1), ON_PASS), Reports()
    answers = Answers(NoEngine("no engine of pool gate-fp32 is alive"))
    worker = make_worker(catalog, reports, answers, tries=3)
    for _ in range(2):
        assert await worker.work_once()
        assert (await state_of(catalog, revision)).state is RevisionState.EVALUATING
        await asyncio.sleep(0.01)
    assert await worker.work_once()
    assert (await state_of(catalog, revision)).state is RevisionState.REJECTED
    assert "could not be evaluated (tries: 3)" in reports.last.reasons[0]
    assert "gate-fp32" in reports.last.reasons[0]
    assert len(answers.subjects) == 3


async def test_unexpected_error_costs_a_try_and_not_the_service(catalog: Catalog, export_revision: Export) -> None:
    revision = await export_revision(digest(1))
    answers = Answers(ZeroDivisionError("odd"))
    worker = make_worker(catalog, Reports(), answers)
    working = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(20):
            while (await state_of(catalog, revision)).state is not RevisionState.REJECTED:
                await asyncio.sleep(0.02)
        assert not working.done()
    finally:
        await end(working)


async def test_lost_lease_stops_the_evaluation_and_writes_nothing(catalog: Catalog, export_revision: Export) -> None:
    revision, reports, answers = await export_revision(digest(1), ON_PASS), Reports(), Answers(True)
    answers.holds.clear()
    working = asyncio.create_task(make_worker(catalog, reports, answers, lease_s=0.3).work_once())
    await answers.started.wait()
    async with catalog.connection() as conn:
        await conn.execute("update revisions set lease_until = clock_timestamp() - interval '1 second'")
        other = await revisions.claim_evaluation(conn, "another", 30)
    assert other is not None
    async with asyncio.timeout(20):
        await working
    assert reports.written == {}
    assert (await state_of(catalog, revision)).owner == "another"
    assert await facts_of(catalog) == []


async def test_verdict_of_a_replaced_claim_is_refused(catalog: Catalog, export_revision: Export) -> None:
    revision, answers = await export_revision(digest(1), ON_PASS), Answers(True)
    answers.holds.clear()
    working = asyncio.create_task(make_worker(catalog, Reports(), answers, lease_s=60).work_once())
    await answers.started.wait()
    async with catalog.connection() as conn:
        await revisions.quarantine(conn, revision.revision_id, "bytes differ", "scheduler")
    answers.holds.set()
    await working
    assert (await state_of(catalog, revision)).state is RevisionState.QUARANTINED
    assert await facts_of(catalog) == []


async def test_stop_gives_the_revision_back_at_once_without_using_a_try(
    catalog: Catalog, export_revision: Export
) -> None:
    revision, answers = await export_revision(digest(1)), Answers(True)
    answers.holds.clear()
    working = asyncio.create_task(make_worker(catalog, Reports(), answers).run())
    await answers.started.wait()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    async with catalog.connection() as conn:
        again = await revisions.claim_evaluation(conn, "another", 30)
    assert again is not None and again.revision_id == revision.revision_id
    assert again.tries == 1


async def test_missing_dataset_is_told_to_the_evaluation(catalog: Catalog, export_revision: Export) -> None:
    spec = {"evaluation": {"scorer": "loss", "held_out": {"digest": digest(9)}}}
    await export_revision(digest(1), spec)
    answers = Answers(True)
    await make_worker(catalog, Reports(), answers).work_once()
    assert "no dataset" in answers.subjects[0].held_out_problem
