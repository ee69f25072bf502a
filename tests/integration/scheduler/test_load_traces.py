"""The scheduler's part of a request's trace, over the real bus."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from openmint import tracing
from openmint.errors import LoadFailed
from openmint.settings import CommonSettings
from openmint.trace_files import find_trace, walk


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    tracing.start_tracing("scheduler", CommonSettings(state_dir=tmp_path, traces_dir=tmp_path / "traces"))
    yield tmp_path / "traces"
    tracing.stop_tracing()


async def test_a_cold_request_is_one_trace_through_queue_stage_and_attach(fleet, folder: Path):
    engine = await fleet.engine("a")
    await fleet.scheduler()

    async def ask(request_id: str) -> None:
        with tracing.begin_trace("gateway.request", request_id=request_id), tracing.begin("gateway.wait"):
            await fleet.loads.ensure_resident(fleet.order(1), 30.0)

    await asyncio.gather(ask("first"), ask("second"))
    await asyncio.sleep(0.1)
    tracing.stop_tracing()
    names = [node.span.name for node in walk(find_trace(folder, "first"))]
    assert names == [
        "gateway.request", "gateway.wait", "scheduler.load", "scheduler.queue", "scheduler.stage", "scheduler.attach",
    ]  # fmt: skip
    spans = {node.span.name: node.span for node in walk(find_trace(folder, "first"))}
    load = spans["scheduler.load"]
    assert (load.attributes["engine"], load.attributes["policy"], load.error) == (engine.name, "acme/p1", "")
    for part in ("scheduler.queue", "scheduler.stage", "scheduler.attach"):
        assert load.started_ns <= spans[part].started_ns <= spans[part].ended_ns <= load.ended_ns
    joined = walk(find_trace(folder, "second"))
    assert [node.span.name for node in joined][:4] == [
        "gateway.request", "gateway.wait", "load.joined", "scheduler.load",
    ]  # fmt: skip
    assert [node.is_joined for node in joined][:4] == [False, False, False, True]


async def test_a_load_that_fails_says_so_in_its_trace(fleet, folder: Path):
    engine = await fleet.engine("a")
    engine.faults.bad = {fleet.order(1).digest}
    await fleet.scheduler()
    with pytest.raises(LoadFailed), tracing.begin_trace("gateway.request", request_id="bad"):
        await fleet.loads.ensure_resident(fleet.order(1), 30.0)
    tracing.stop_tracing()
    spans = {node.span.name: node.span for node in walk(find_trace(folder, "bad"))}
    assert spans["scheduler.load"].error == "bad_adapter"
    assert spans["scheduler.stage"].error == "bad_adapter"
    assert spans["gateway.request"].error == "load_failed"
