"""`openmint engines`, `loads` and `trace` on a real bus, with a scheduler over one simulated engine."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from openmint import tracing
from openmint.bus.connection import Bus, connect_bus
from openmint.bus.provision import provision
from openmint.cli.fleet_view import FleetView, open_view, show
from openmint.cli.loads import load_table, load_values
from openmint.clock import WallClock
from openmint.engines.scheduler_view import ask_leader
from openmint.engines.simulated import SimulatedEngine, SimulatedTimings
from openmint.events import LoadRequested
from openmint.identifiers import new_id
from openmint.settings import CommonSettings
from openmint_scheduler.app import Scheduler
from openmint_scheduler.settings import SchedulerSettings

from .conftest import Shell

DIGEST = f"sha256:{7:064x}"


@dataclass
class Night:
    """A base with one engine, on which staging takes minutes."""

    base: str
    engine: SimulatedEngine
    bus: Bus

    async def ask(self) -> None:
        """Somebody wants a policy."""
        request = LoadRequested(
            base=self.base, tenant="acme", policy="tone", revision_id=UUID(int=7), digest=DIGEST, rank=8,
            adapter_bytes=5_000_000, waiter="test", deadline_s=60.0,
        )  # fmt: skip
        await self.bus.publish_command(request, request.load_subject())


@pytest.fixture
async def night(bus: Bus, settings: CommonSettings) -> AsyncIterator[Night]:
    await provision(bus)
    base = f"base-{new_id().hex[-12:]}"
    engine = SimulatedEngine(
        f"{base}-one", WallClock(), base=base, tell=bus.publish_soft, timings=SimulatedTimings(stage_s=300.0)
    )
    await engine.start()

    async def beat() -> None:
        while True:
            heartbeat = engine.heartbeat()
            assert heartbeat is not None
            await bus.publish_core(heartbeat.subject(), heartbeat)
            await asyncio.sleep(0.2)

    scheduler_bus = await connect_bus(settings, "scheduler")
    scheduler_settings = SchedulerSettings(**(settings.model_dump() | {"bases": base}))
    scheduler = Scheduler(scheduler_bus, scheduler_settings, WallClock(), lambda url: engine)
    await scheduler.start()
    beating = asyncio.create_task(beat())
    async with asyncio.timeout(10):
        while (seen := await ask_leader(bus, base)) is None or not any(e.is_usable for e in seen.engines):
            await asyncio.sleep(0.05)
    yield Night(base, engine, bus)
    beating.cancel()
    await asyncio.gather(beating, return_exceptions=True)
    await scheduler.close()
    await scheduler_bus.close()


async def until_staging(night: Night) -> None:
    await night.ask()
    async with asyncio.timeout(10):
        while (seen := await ask_leader(night.bus, night.base)) is None or [e.staging for e in seen.engines] != [1]:
            await asyncio.sleep(0.05)


async def test_the_operator_sees_engines_and_loads(shell: Shell, night: Night):
    await until_staging(night)
    (engine,) = [engine for engine in await shell.json("engines") if engine["base"] == night.base]
    assert (engine["engine"], engine["condition"], engine["capacity"]) == (night.engine.name, "ready", 8)
    table = (await shell.run("engines")).stdout
    assert "heartbeat" in table
    assert f"{night.engine.name}" in table
    assert "0/8" in table
    (load,) = [load for load in await shell.json("loads") if load["base"] == night.base]
    assert (load["policy"], load["phase"], load["engine"]) == ("acme/tone", "staging", night.engine.name)
    table = (await shell.run("loads")).stdout
    assert "acme/tone" in table
    assert "interactive" in table
    assert "1 loads, 0 waiting" in table


async def test_what_is_loaded_where_is_listed_by_adapter(shell: Shell, night: Night):
    night.engine._timings = SimulatedTimings()
    await night.ask()
    async with asyncio.timeout(10):
        while DIGEST not in night.engine.adapters:
            await asyncio.sleep(0.05)
    listed = (await shell.run("engines", "--residents")).stdout
    assert "acme/tone" in listed
    (engine,) = [e for e in await shell.json("engines", "--residents") if e["base"] == night.base]
    assert [held["revision"] for held in engine["residents"]] == [DIGEST]


@pytest.mark.slow
async def test_watching_shows_one_look_after_the_other(
    shell: Shell, night: Night, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    await until_staging(night)
    async with open_view(mine=False) as look:
        await show(look, load_table, load_values, watch=True, as_json=True, looks=2)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert len(lines) == 2
    assert all(any(load["base"] == night.base for load in looked) for looked in lines)

    async def nothing() -> FleetView:
        return FleetView("no scheduler leads")

    await show(nothing, load_table, load_values, watch=True, as_json=False, looks=1)
    assert "no scheduler leads" in capsys.readouterr().out


@pytest.mark.slow
async def test_without_a_scheduler_the_engines_own_words_are_shown(shell: Shell, bus: Bus):
    engine = SimulatedEngine("lonely", WallClock(), base="forsaken")
    await engine.start()

    async def beat() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                heartbeat = engine.heartbeat()
                assert heartbeat is not None
                await bus.publish_core(heartbeat.subject(), heartbeat)
                await asyncio.sleep(0.2)

    beating = asyncio.create_task(beat())
    shown = (await shell.run("engines")).stdout
    beating.cancel()
    assert "no scheduler leads" in shown
    assert "lonely" in shown


async def test_who_is_no_operator_is_sent_to_the_gateway(shell: Shell, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENMINT_KEY", "om.x")
    assert (await shell.run("engines", "--mine")).returncode == 3
    monkeypatch.delenv("OPENMINT_NATS_URL")
    assert "http://127.0.0.1:9" in (await shell.run("loads")).stderr


async def test_a_trace_is_a_tree_with_milliseconds(shell: Shell, tmp_path: Path):
    tracing.start_tracing("gateway", CommonSettings(state_dir=tmp_path, traces_dir=tmp_path / "traces"))
    with tracing.begin_trace("gateway.request", request_id="r-1", policy="acme/tone"), tracing.begin("gateway.wait"):
        tracing.begin("scheduler.load", engine="one").end("load_failed")
    tracing.stop_tracing()
    shown = (await shell.run("trace", "last")).stdout
    assert "gateway.request" in shown
    assert "└─ gateway.wait" in shown
    assert "   └─ scheduler.load" in shown
    assert "FAILED load_failed engine=one" in shown
    spans = await shell.json("trace", "r-1")
    assert [span["name"] for span in spans] == ["gateway.request", "gateway.wait", "scheduler.load"]
    missing = await shell.run("trace", "nothing")
    assert (missing.returncode, "--traces" in missing.stderr) == (2, True)
