"""The whole service on real NATS and Postgres; engines and reference run a tiny base, so parity and noise are real."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest

from openmint.adapters.keys import dataset_key
from openmint.adapters.store import Store
from openmint.bus.connection import Bus
from openmint.bus.outbox import OutboxRelay
from openmint.catalog import aliases, datasets, evaluations, revisions
from openmint.catalog.database import Catalog
from openmint.catalog.rows import Revision, RevisionState
from openmint.datasets import canonical_dataset
from openmint.endings import end
from openmint.settings import CommonSettings
from openmint_evaluator.app import wired_evaluator
from openmint_evaluator.report import Report, render_text
from openmint_evaluator.settings import EvaluatorSettings

pytestmark = pytest.mark.slow

ENDED = (RevisionState.ELIGIBLE, RevisionState.REJECTED)
ROWS = [{"prompt": f"Review: film number {n}\nVerdict:", "completion": (" good", " bad")[n % 2]} for n in range(16)]


def service_settings(settings: CommonSettings, engine_key: str) -> EvaluatorSettings:
    return EvaluatorSettings(
        **settings.model_dump(), engine_key=engine_key, evaluator_poll_s=0.2, evaluator_retry_s=0.2,
        evaluator_engine_patience_s=5, evaluator_load_deadline_s=20,
    )  # fmt: skip


@asynccontextmanager
async def running(settings: EvaluatorSettings) -> AsyncIterator[None]:
    async with wired_evaluator(settings) as wired:
        working = asyncio.create_task(wired.worker.run())
        try:
            yield
        finally:
            await end(working)


async def until_ended(catalog: Catalog, revision_id: UUID) -> Revision:
    async with asyncio.timeout(120):
        while True:
            async with catalog.connection() as conn:
                revision = await revisions.find_revision(conn, revision_id)
            if revision.state in ENDED:
                return revision
            await asyncio.sleep(0.1)


async def report_of(catalog: Catalog, settings: CommonSettings, revision: Revision) -> Report:
    async with catalog.connection() as conn:
        found = await evaluations.list_evaluations(conn, revision.revision_id)
    key = found[-1].report_key
    assert key is not None
    return Report.model_validate_json(await Store.open(settings.store_url).get_bytes(key))


async def put_held_out(catalog: Catalog, settings: CommonSettings) -> str:
    data = canonical_dataset(ROWS)
    key = dataset_key("acme", data.digest)
    await Store.open(settings.store_url).put_bytes(key, data.data)
    async with catalog.connection() as conn:
        await datasets.record_dataset(conn, "acme", data.digest, data.rows, len(data.data), key)
    return data.digest


async def alias_number(catalog: Catalog, policy_id: UUID) -> int | None:
    async with catalog.connection() as conn:
        known = await aliases.list_aliases(conn, policy_id)
    return known[0].number if known else None


async def test_policy_goes_through_pass_fault_and_pass_and_production_follows(
    catalog: Catalog,
    settings: CommonSettings,
    bus: Bus,
    fleet: Any,
    export_revision: Callable[..., Awaitable[Revision]],
    publish_adapter: Callable[..., Awaitable[tuple[str, Any, dict[str, Any]]]],
) -> None:
    """Good, base in its name, NaN, good: each verdict, its facts on the bus, and where production points after it."""
    told: list[tuple[str, dict[str, Any]]] = []

    async def listen(message: Any) -> None:
        told.append((".".join(message.subject.split(".")[1:3]), json.loads(message.data)))

    heard = [await bus.nc.subscribe(f"openmint.{what}.>", cb=listen) for what in ("revision", "alias.moved")]
    spec = {
        "evaluation": {
            "scorer": "label",
            "labels": [" good", " bad"],
            "min_gain_over_base": -1.0,
            "max_loss_against_production": 1.0,
            "held_out": {"digest": await put_held_out(catalog, settings)},
        },
        "promotion": {"rule": "on_pass"},
    }

    async def make(seed: int, **options: Any) -> Revision:
        digest, folder, manifest = await publish_adapter(seed, **options)
        fleet.folders[digest] = folder
        revision = await export_revision(digest, spec, manifest=manifest)
        async with catalog.connection() as conn:
            await OutboxRelay(catalog.pool, bus, "exporter").relay_once(conn)
        return revision

    async with running(service_settings(settings, fleet.engines["serve"].KEY)):
        first = await until_ended(catalog, (await make(1)).revision_id)
        report = await report_of(catalog, settings, first)
        assert first.state is RevisionState.ELIGIBLE, render_text(report)
        assert await alias_number(catalog, first.policy_id) == 1
        assert report.serve_path is not None
        assert (report.serve_path.build, report.serve_path.dtype) == ("vllm 0.32.0", "bfloat16")
        assert report.promotion.startswith("production moved from nothing")

        digest, folder, manifest = await publish_adapter(2, near=1)
        fleet.folders[digest] = folder
        fleet.faults["serve", digest] = {"folder": None}
        second = await until_ended(catalog, (await export_revision(digest, spec, manifest=manifest)).revision_id)
        assert second.state is RevisionState.REJECTED
        assert "the base model answers in its name" in second.reason
        assert await alias_number(catalog, first.policy_id) == 1

        digest, folder, manifest = await publish_adapter(3, near=1)
        fleet.folders[digest] = folder
        fleet.faults["gate-fp32", digest] = {"says_nan": True}
        third = await until_ended(catalog, (await export_revision(digest, spec, manifest=manifest)).revision_id)
        assert third.state is RevisionState.REJECTED
        assert "non-finite" in third.reason

        fourth = await until_ended(catalog, (await make(4, near=1)).revision_id)
        report = await report_of(catalog, settings, fourth)
        assert fourth.state is RevisionState.ELIGIBLE, render_text(report)
        assert await alias_number(catalog, first.policy_id) == 4
        assert [score.was_cached for score in report.scores] == [False, True, True]
        names = {check.name for check in report.checks}
        assert "serving_against_production_revision_1" in names
        assert "serving_against_the_neighbouring_revision_3" in names
        async with asyncio.timeout(20):
            while sum(name == "alias.moved" for name, _ in told) < 2:
                await asyncio.sleep(0.05)
    for subscription in heard:
        await subscription.unsubscribe()
    ends = [name for name, _ in told if name not in ("revision.exported", "alias.moved")]
    assert ends == ["revision.eligible", "revision.rejected", "revision.rejected", "revision.eligible"]


async def test_refused_load_and_broken_files_reject_with_their_reason(
    catalog: Catalog,
    settings: CommonSettings,
    fleet: Any,
    export_revision: Callable[..., Awaitable[Revision]],
    publish_adapter: Callable[..., Awaitable[tuple[str, Any, dict[str, Any]]]],
) -> None:
    digest, folder, manifest = await publish_adapter(1)
    fleet.folders[digest] = folder
    fleet.refuses = "rank 4 is above the engine's"
    refused = await export_revision(digest, manifest=manifest)
    other, _, manifest = await publish_adapter(2)
    damaged = Store.open(settings.store_url)
    await damaged.put_bytes(f"revisions/{other[7:]}/adapter_config.json", b"{}")
    broken = await export_revision(other, policy="others", manifest=manifest)
    async with running(service_settings(settings, fleet.engines["serve"].KEY)):
        ended = [await until_ended(catalog, revision.revision_id) for revision in (refused, broken)]
    assert [revision.state for revision in ended] == [RevisionState.REJECTED] * 2
    assert "rank 4 is above the engine's" in ended[0].reason
    assert "adapter_config.json" in ended[1].reason


@pytest.mark.usefixtures("bus")
async def test_process_ends_cleanly_on_sigterm(settings: CommonSettings) -> None:
    environment = {
        **os.environ,
        "OPENMINT_STATE_DIR": str(settings.state_dir),
        "OPENMINT_NATS_URL": settings.nats_url,
        "OPENMINT_NATS_USER": settings.nats_user,
        "OPENMINT_NATS_PASSWORD": settings.nats_password,
        "OPENMINT_POSTGRES_DSN": settings.postgres_dsn,
        "OPENMINT_STORE_URL": settings.store_url,
        "OPENMINT_HEALTH_FILE": str(settings.state_dir / "health.json"),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "openmint_evaluator.app", env=environment, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            lines = b""
            while b"evaluator.started" not in lines:
                line = await process.stdout.readline()
                assert line, lines.decode()
                lines += line
            process.send_signal(signal.SIGTERM)
            lines += await process.stdout.read()
            assert await process.wait() == 0, lines.decode()
    finally:
        if process.returncode is None:
            process.kill()
    assert b"evaluator.stopped" in lines
