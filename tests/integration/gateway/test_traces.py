"""The gateway's part of a request's trace."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from openmint import tracing
from openmint.errors import NotFound
from openmint.settings import CommonSettings
from openmint.trace_files import SpanNode, find_trace, walk

from .conftest import World

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    tracing.start_tracing("gateway", CommonSettings(state_dir=tmp_path, traces_dir=tmp_path / "traces"))
    yield tmp_path / "traces"
    tracing.stop_tracing()


async def whole_trace(folder: Path, answer: httpx.Response) -> list[SpanNode]:
    """The trace of an answer; the gateway ends it just after the caller has the last byte."""
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(NotFound):
                found = find_trace(folder, answer.headers["x-openmint-request-id"])
                if found[0].span.name == "gateway.request":
                    return found
            await asyncio.sleep(0.05)


async def test_a_cold_stream_is_a_wait_an_ask_and_a_first_token_in_the_callers_trace(
    world: World, http: httpx.AsyncClient, folder: Path
):
    revision = await world.served()
    world.load_delay_s = 0.1
    body = {"model": world.model, "prompt": "a", "stream": True}
    answer = await http.post("/v1/completions", json=body, headers={"traceparent": CALLER})
    assert answer.status_code == 200
    found = walk(await whole_trace(folder, answer))
    assert [node.span.name for node in found] == [
        "gateway.request", "gateway.wait", "gateway.ask", "gateway.first_token",
    ]  # fmt: skip
    request, wait = found[0].span, found[1].span
    assert (request.trace, request.parent) == (CALLER[3:35], CALLER[36:52])
    assert request.attributes["policy"] == world.model
    assert request.attributes["revision"] == revision.digest
    assert request.attributes["was_cold"] is True
    assert wait.took_ms >= 100
    assert wait.attributes["waits_for"] == "load"


async def test_a_refused_request_says_its_code(world: World, http: httpx.AsyncClient, folder: Path):
    answer = await http.post("/v1/completions", json={"model": f"{world.tenant}/nobody", "prompt": "a"})
    (node,) = await whole_trace(folder, answer)
    assert (node.span.error, node.span.attributes["outcome"]) == ("not_found", "refused")
