"""One trace from a request through its cold load to the first token, over every process of a real stack."""

import asyncio
from pathlib import Path

import pytest

from load.clients.records import Call
from load.stack.openmint_stack import OpenmintStack
from load.stack.policies import Policy
from openmint.errors import NotFound
from openmint.trace_files import SpanNode, find_trace, walk

BASE = Path(__file__).parents[2] / ".openmint" / "bases" / "smollm2-135m"

COLD_WAY = [
    ("gateway.request", "gateway"),
    ("gateway.wait", "gateway"),
    ("scheduler.load", "scheduler"),
    ("scheduler.queue", "scheduler"),
    ("scheduler.stage", "scheduler"),
    ("engine_host.stage", "engine_host"),
    ("scheduler.attach", "scheduler"),
    ("engine_host.attach", "engine_host"),
    ("gateway.ask", "gateway"),
    ("gateway.first_token", "gateway"),
]


async def whole_trace(folder: Path, names: set[str]) -> list[SpanNode]:
    """The newest trace, once all its processes have written their part."""
    async with asyncio.timeout(15):
        while True:
            try:
                found = walk(find_trace(folder, "last"))
            except NotFound:
                found = []
            if names <= {node.span.name for node in found}:
                return found
            await asyncio.sleep(0.2)


@pytest.mark.engine
async def test_a_cold_streaming_request_is_one_trace_from_the_gateway_to_its_first_token(tmp_path: Path):
    folder = tmp_path / "traces"
    async with OpenmintStack(BASE, env={"OPENMINT_TRACES_DIR": str(folder)}) as stack:
        policy = Policy("t0", "tone")
        await stack.seed([policy])
        outcome = await stack.ask(Call(policy, "one plus one is", 2))
        assert outcome.is_answered, outcome.error
        assert outcome.ttft_s is not None
        cold = await whole_trace(folder, {name for name, _ in COLD_WAY})
        assert [(node.span.name, node.span.service) for node in cold] == COLD_WAY
        spans = {node.span.name: node.span for node in cold}
        first_token_ms = (spans["gateway.first_token"].ended_ns - spans["gateway.request"].started_ns) / 1e6
        assert first_token_ms == pytest.approx(outcome.ttft_s * 1000, abs=50)
        assert spans["gateway.request"].attributes["policy"] == policy.model
        assert spans["gateway.request"].attributes["was_cold"] is True
        waited = sum(spans[name].took_ms for name in ("gateway.wait", "gateway.ask", "gateway.first_token"))
        assert waited == pytest.approx(first_token_ms, abs=max(50.0, first_token_ms * 0.2))

        await stack.ask(Call(policy, "one plus one is", 2))
        async with asyncio.timeout(15):
            while len(warm := walk(find_trace(folder, "last"))) != 3:
                await asyncio.sleep(0.2)
        assert [node.span.name for node in warm] == ["gateway.request", "gateway.ask", "gateway.first_token"]
