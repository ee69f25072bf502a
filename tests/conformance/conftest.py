"""The kinds of engine that the conformance cases run against. A new kind is one entry of ENGINE_KINDS."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from openmint.engines.protocol import CommandStamp, Engine


@dataclass
class Subject:
    """An engine without adapters, and how to give its store a good revision or one that must never be loaded."""

    engine: Engine
    publish: Callable[[], Awaitable[str]]
    publish_bad: Callable[[], Awaitable[str]]
    stamp: Callable[[], CommandStamp]
    """The leading scheduler's next command."""


def _vllm(request: pytest.FixtureRequest) -> Subject:
    running = request.getfixturevalue("fp32_engine")

    async def publish_bad() -> str:
        digest = await running.publish()
        weights = running.state_dir / "store" / "revisions" / digest.removeprefix("sha256:")
        path = weights / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-4] + b"\0\0\xc0\x7f")
        return digest

    return Subject(running.engine, running.publish, publish_bad, running.stamp)


ENGINE_KINDS: dict[str, Callable[[pytest.FixtureRequest], Subject]] = {"vllm": _vllm}
MARKS = {"vllm": [pytest.mark.engine]}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "subject" in metafunc.fixturenames:
        kinds = [pytest.param(kind, marks=MARKS.get(kind, []), id=kind) for kind in ENGINE_KINDS]
        metafunc.parametrize("subject", kinds, indirect=True)


@pytest.fixture
def subject(request: pytest.FixtureRequest) -> Subject:
    return ENGINE_KINDS[request.param](request)
