"""Whole evaluations on engines backed by the reference: fp32 parity and bf16 noise are real, faults injected."""

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from openmint.catalog.rows import Base, Dataset, Revision, RevisionState
from openmint.clock import WallClock
from openmint.errors import BadAdapter, EngineFailed, LoadFailed, NoEngine
from openmint.events import EvaluationSpec, PromotionSpec
from openmint_evaluator.bench import BenchBuilder
from openmint_evaluator.engine_access import EngineLease
from openmint_evaluator.evaluate import Evaluator, Pools
from openmint_evaluator.evaluation_files import AdapterFolder
from openmint_evaluator.reference_cache import ReferenceLogprobs
from openmint_evaluator.reference_client import ReferenceChild
from openmint_evaluator.report import Report, ServingPath, render_text
from openmint_evaluator.served_model import BASE_REVISION, ServedModel
from openmint_evaluator.subject import Subject

pytestmark = pytest.mark.slow

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROWS = [{"prompt": f"Review: film {n} was quite {'fun' if n % 3 else 'dull'}\nVerdict:", "completion": c}
        for n, c in enumerate([" good", " bad"] * 12)]  # fmt: skip
CONTENT = "\n".join(json.dumps(row) for row in ROWS).encode()
DATASET = Dataset("acme", f"sha256:{hashlib.sha256(CONTENT).hexdigest()}", len(ROWS), len(CONTENT), "rows", NOW)
COMPUTED = ReferenceLogprobs()
"""Shared by all tests: a digest stands for the same bytes in each of them."""


def digest_of(number: int) -> str:
    return "sha256:" + f"{number:x}" * 64


@dataclass
class World:
    """Adapters by number, engines by pool; both seams of the evaluator over local folders and direct leases."""

    base: Base
    folders: dict[int, Path]
    engines: dict[str, Any]
    http: httpx.AsyncClient
    child: ReferenceChild
    reports: dict[str, Report]
    no_ops: set[int]
    refused: set[int]

    async def fetch_adapter(self, digest: str, base: Base, into: Path) -> AdapterFolder:
        number = int(digest.removeprefix("sha256:")[0], 16)
        if number not in self.folders:
            raise BadAdapter("the folder lost a file")
        return AdapterFolder(self.folders[number], 4, ("down_proj", "q_proj", "v_proj"), number in self.no_ops)

    async def read_dataset(self, key: str) -> bytes:
        return CONTENT

    async def read_report(self, key: str) -> Report | None:
        return self.reports.get(key)

    async def write_report(self, report: Report) -> str:
        self.reports[str(report.evaluation_id)] = report
        return str(report.evaluation_id)

    @asynccontextmanager
    async def lease(self, revision: Revision, base: Base, pool: str) -> AsyncIterator[EngineLease]:
        if pool not in self.engines:
            raise NoEngine(f"no engine of pool {pool} is alive")
        if revision.number in self.refused:
            raise LoadFailed("rank is above the engine's")
        engine = self.engines[pool]
        name = f"r{revision.number}"
        if name not in engine.served:
            engine.serve(name, revision.digest, self.folders[revision.number or 0])
        boot = str(engine.boot_id)
        yield EngineLease(
            ServedModel(self.http, engine.url, name, revision.digest or "", boot, revision.tenant),
            ServedModel(self.http, engine.url, "tiny", BASE_REVISION, boot, revision.tenant),
            ServingPath(pool=pool, engine=f"{pool}-1", boot_id=boot, build="test server", dtype=engine.dtype),
        )

    async def run(self, subject: Subject, gate: str | None = "gate-fp32") -> Report:
        class Pool:
            async def child(pool, base_folder: Path) -> ReferenceChild:
                return self.child

        builder = BenchBuilder(self, Pool(), 512)  # type: ignore[arg-type]
        builder._logprobs = COMPUTED
        evaluator = Evaluator(self, self, builder, Pools(gate, "serve"), 4, WallClock())
        return await evaluator.evaluate(subject)


def make_revision(number: int) -> Revision:
    return Revision(
        revision_id=uuid4(), tenant="acme", policy_id=UUID(int=1), policy="reviews", base="tiny", job_id=None,
        checkpoint_id=None, step=number * 10, state=RevisionState.EVALUATING, fence=1, tries=1, owner="me",
        lease_until=NOW, number=number, digest=digest_of(number), rank=4, adapter_bytes=1000, export_ms=1.0, source="",
        quarantined_from=None, reason="", waived_by=None, cause=None, hint_event_id=uuid4(), created_at=NOW,
        changed_at=NOW,
    )  # fmt: skip


@pytest.fixture
async def world(
    base_folder: Path, engines: dict[str, Any], child: Any, make_adapter: Callable[..., Path]
) -> AsyncIterator[World]:
    """Revision 1 in production, 2 its sibling (three quarters of the same weights), 3 without effect."""
    folders = {1: make_adapter(1), 2: make_adapter(2, near=1), 3: make_adapter(3, strength=0.0)}
    base = Base("tiny", "sha256:" + "b" * 64, str(base_folder), {}, {})
    key = engines["serve"].KEY
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=60) as http:
        yield World(base, folders, engines, http, child, {}, set(), set())


def make_subject(world: World, number: int = 2, **changes: Any) -> Subject:
    subject = Subject(
        revision=make_revision(number),
        base=world.base,
        spec=EvaluationSpec(scorer="label", labels=[" good", " bad"], min_gain_over_base=-1.0),
        promotion=PromotionSpec(),
        held_out=DATASET,
        held_out_problem="",
        production=make_revision(1),
        neighbour=None,
        report_keys=(),
    )
    return replace(subject, **changes)


def failing(report: Report) -> str:
    return " | ".join(check.words for check in report.checks if check.outcome == "fails")


async def test_good_revision_passes_every_stage_and_its_report_names_what_it_rests_on(world: World) -> None:
    report = await world.run(make_subject(world))
    assert report.passed, render_text(report)
    outcomes = {check.name: check.outcome for check in report.checks}
    assert outcomes == {
        "parity_max": "holds",
        "parity_mean": "holds",
        "base_rows_mean": "holds",
        "applied": "holds",
        "serving_mean": "holds",
        "serving_base_rows_mean": "holds",
        "serving_against_the_base_model": "holds",
        "serving_against_this_revision_at_half_strength": "holds",
        "serving_against_this_revision_at_double_strength": "holds",
        "serving_against_production_revision_1": "holds",
        "gain_over_base": "holds",
        "against_production": "not checked",
    }
    assert [score.subject for score in report.scores] == ["revision", "base", "production"]
    text = render_text(report)
    for part in (digest_of(2), world.base.digest, "q_proj", "prompts plain", "scorer label", "bfloat16", "24 rows"):
        assert part in text
    assert report.probe_tokens >= 512
    assert str(world.engines["serve"].boot_id) in text


@pytest.mark.parametrize("pool", ["gate-fp32", "serve"])
@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({"folder": None}, "the base model"),
        ({"folder": 1}, "production revision 1"),
        ({"scale": 0.5}, "half strength"),
        ({"scale": 2.0}, "double strength"),
        ({"says_nan": True}, "non-finite"),
    ],
)
async def test_injected_fault_is_rejected_and_named(world: World, pool: str, fault: dict[str, Any], named: str) -> None:
    served = {"folder": world.folders[2], **fault}
    if served["folder"] == 1:
        served["folder"] = world.folders[1]
    world.engines[pool].serve("r2", digest_of(2), **served)
    report = await world.run(make_subject(world))
    assert not report.passed
    assert named in failing(report)
    assert named in " ".join(report.reasons)
    assert any(check.name == "held_out_score" and check.outcome == "not checked" for check in report.checks)


async def test_revision_without_effect_needs_a_manifest_that_says_so(world: World) -> None:
    report = await world.run(make_subject(world, 3))
    assert not report.passed
    assert "changes nothing" in failing(report)
    world.no_ops.add(3)
    report = await world.run(make_subject(world, 3))
    assert report.passed, render_text(report)


async def test_job_rule_on_the_score_rejects(world: World) -> None:
    spec = EvaluationSpec(scorer="loss", min_gain_over_base=5.0, max_loss_against_production=100.0)
    report = await world.run(make_subject(world, spec=spec))
    assert not report.passed
    assert "does not gain what the job asks for" in failing(report)
    assert {check.name: check.outcome for check in report.checks}["loss_against_production"] == "holds"


async def test_without_fp32_engine_the_serving_check_alone_decides_and_says_so(world: World) -> None:
    report = await world.run(make_subject(world), gate=None)
    assert report.passed
    assert "no fp32 engine is set up" in render_text(report)


async def test_one_fp32_engine_may_be_in_both_pools(world: World) -> None:
    world.engines["serve"] = world.engines["gate-fp32"]
    report = await world.run(make_subject(world))
    assert report.passed, render_text(report)
    world.engines["serve"].serve("r2", digest_of(2), world.folders[2], scale=0.5)
    assert "half strength" in failing(await world.run(make_subject(world), gate=None))


async def test_scores_of_production_and_base_are_taken_from_its_own_report(world: World) -> None:
    first = await world.run(make_subject(world, 1, production=None))
    world.reports["first"] = first
    requests = world.engines["serve"].requests
    requests.clear()
    report = await world.run(make_subject(world, report_keys=("first",)))
    assert [score.was_cached for score in report.scores] == [False, True, True]
    scored = [request["model"] for request in requests if "allowed_token_ids" in request]
    assert set(scored) == {"r2"}


async def test_what_is_wrong_with_files_data_or_load_becomes_a_reason(world: World) -> None:
    lost = await world.run(make_subject(world, 7))
    assert "not fit to be loaded: the folder lost a file" in failing(lost)
    data = await world.run(make_subject(world, held_out_problem="tenant acme has no such dataset"))
    assert "tenant acme has no such dataset" in failing(data)
    labels = EvaluationSpec(scorer="label", labels=[" fine", " poor"])
    other = await world.run(make_subject(world, spec=labels))
    assert "none of the labels" in failing(other)
    world.refused.add(2)
    refused = await world.run(make_subject(world))
    assert "rank is above the engine's" in failing(refused)
    assert not any(report.passed for report in (lost, data, other, refused))


async def test_engine_whose_base_rows_carry_an_adapter_gives_no_verdict(world: World) -> None:
    world.engines["gate-fp32"].serve("tiny", "base", world.folders[1])
    with pytest.raises(EngineFailed, match="gate-fp32-1 of pool gate-fp32 is not fit to judge"):
        await world.run(make_subject(world))


async def test_missing_engine_is_not_a_verdict(world: World) -> None:
    del world.engines["gate-fp32"]
    with pytest.raises(NoEngine):
        await world.run(make_subject(world))
