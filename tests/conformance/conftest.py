"""The kinds of engine that the conformance cases run against. A new kind is one entry of ENGINE_KINDS."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count

import pytest
from tests.fixtures_engine import CAPACITY, SLOTS

from openmint.clock import WallClock
from openmint.engines.protocol import CommandStamp, Engine, Resident
from openmint.engines.simulated import SimulatedEngine
from openmint.engines.simulated_timings import SimulatedTimings

SHORT = SimulatedTimings(stage_s=0.002, gap_s=0.002, attach_s=0.001, remove_s=0.001, look_s=0.0)
"""Times in which stagings at once still overlap."""


@dataclass
class Subject:
    """An engine without adapters, and how to give its store a good revision or one that must never be loaded."""

    engine: Engine
    publish: Callable[[], Awaitable[str]]
    publish_bad: Callable[[], Awaitable[str]]
    stamp: Callable[[], CommandStamp]
    """The leading scheduler's next command."""
    ask: Callable[[Resident], Awaitable[None]]
    """One request to a resident."""


def _vllm(request: pytest.FixtureRequest) -> Subject:
    running = request.getfixturevalue("fp32_engine")

    async def publish_bad() -> str:
        digest = await running.publish()
        weights = running.state_dir / "store" / "revisions" / digest.removeprefix("sha256:")
        path = weights / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-4] + b"\0\0\xc0\x7f")
        return digest

    async def ask(resident: Resident) -> None:
        async with running.http() as client:
            body = {"model": resident.adapter_name, "prompt": "a", "max_tokens": 1}
            (await client.post("/v1/completions", json=body)).raise_for_status()

    return Subject(running.engine, running.publish, publish_bad, running.stamp, ask)


@pytest.fixture
async def simulated_engine() -> SimulatedEngine:
    """A simulated engine of the size of the real ones, up and empty."""
    engine = SimulatedEngine("simulated", WallClock(), capacity=CAPACITY, slots=SLOTS, timings=SHORT)
    await engine.start()
    return engine


def _simulated(request: pytest.FixtureRequest) -> Subject:
    engine: SimulatedEngine = request.getfixturevalue("simulated_engine")
    numbers = count(1)

    async def publish() -> str:
        return f"sha256:{next(numbers):064x}"

    async def publish_bad() -> str:
        digest = await publish()
        engine.faults.bad.add(digest)
        return digest

    async def ask(resident: Resident) -> None:
        async with engine.request(resident.digest) as is_admitted:
            assert is_admitted

    return Subject(engine, publish, publish_bad, lambda: CommandStamp(1, next(numbers)), ask)


ENGINE_KINDS: dict[str, Callable[[pytest.FixtureRequest], Subject]] = {"vllm": _vllm, "simulated": _simulated}
MARKS = {"vllm": [pytest.mark.engine]}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "subject" in metafunc.fixturenames:
        kinds = [pytest.param(kind, marks=MARKS.get(kind, []), id=kind) for kind in ENGINE_KINDS]
        metafunc.parametrize("subject", kinds, indirect=True)


@pytest.fixture
def subject(request: pytest.FixtureRequest) -> Subject:
    return ENGINE_KINDS[request.param](request)
