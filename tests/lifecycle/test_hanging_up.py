"""A caller who hangs up before the first token costs the engine nothing: while queued, and while loading."""

import asyncio
import os
import signal
import time
from typing import Any

import httpx
import pytest
from tests.fixtures_stack import Stack, eventually, life_of

from openmint.bus.connection import connect_bus
from openmint.engines.protocol import CommandStamp
from openmint.engines.scheduler_view import SchedulerSeen, ask_leader
from openmint.engines.vllm import HostEngine
from openmint.local_stack import secret_file
from openmint.local_stack.status import status

pytestmark = pytest.mark.engine

BASE = "smollm2-135m"
AT_ONCE = 40
"""Streams that fill any engine of the local stack and leave some in the queue."""


async def waiting_in_gateway(client: httpx.AsyncClient) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return float(next(line.rsplit(" ", 1)[1] for line in lines if line.startswith("openmint_gateway_waiting ")))


async def scheduler_s_view(stack: Stack) -> SchedulerSeen:
    bus = await connect_bus(stack.settings, "test")
    try:
        seen = await ask_leader(bus, BASE)
    finally:
        await bus.close()
    assert seen is not None, "nobody leads the base"
    return seen


async def is_under_way(stack: Stack, digest: str) -> bool:
    return any(load.revision == digest for load in (await scheduler_s_view(stack)).loads)


async def drop_copy(stack: Stack, digest: str) -> None:
    """Have the engine's machine forget its staged copy, and wait until the scheduler knows."""
    view = await scheduler_s_view(stack)
    staged = view.engines[0].staged_count
    assert staged is not None
    beat = await stack.heartbeat()
    engine = HostEngine(beat["control_url"], secret_file(stack.state_dir, "engine-control.key"))
    await engine.unstage(CommandStamp(view.epoch, 0), digest)
    await engine.close()

    async def is_known() -> bool | None:
        return ((await scheduler_s_view(stack)).engines[0].staged_count or 0) < staged or None

    await eventually(is_known, "the scheduler's next look", 15)


def body_of(model: str, tokens: int) -> dict[str, Any]:
    return {"model": model, "prompt": "Count:", "max_tokens": tokens, "stream": True, "ignore_eos": True}


async def hold_open(client: httpx.AsyncClient, model: str, tokens: int) -> None:
    async with client.stream("POST", "/v1/completions", json=body_of(model, tokens)) as answer:
        async for _ in answer.aiter_bytes():
            pass


async def hung_up(tasks: list[asyncio.Task[None]]) -> float:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return time.monotonic()


async def test_hang_up_in_the_queue_leaves_it_within_a_second_and_reaches_no_engine(
    stack: Stack, sums: dict[str, Any]
) -> None:
    limits = httpx.Limits(max_connections=AT_ONCE + 4)
    headers = {"authorization": f"Bearer {stack.key}"}
    async with httpx.AsyncClient(base_url=stack.url, headers=headers, limits=limits, timeout=180) as client:
        tasks = [asyncio.create_task(hold_open(client, "lab/sums", 1500)) for _ in range(AT_ONCE)]
        try:

            async def is_queueing() -> float | None:
                waiting = await waiting_in_gateway(client)
                running = (await stack.engine_state()).running
                return waiting if waiting > 0 and running + waiting >= AT_ONCE else None

            waiting = await eventually(is_queueing, "a queue in the gateway", 60)
            admitted = AT_ONCE - int(waiting)
            at_s = await hung_up(tasks)
            while await waiting_in_gateway(client) > 0:
                assert time.monotonic() - at_s < 1.0, "it still stands in the queue a second after the hang-up"
                await asyncio.sleep(0.05)
        finally:
            await hung_up(tasks)
        served = {r.digest: r.served for r in (await stack.engine_state()).residents}

        async def is_idle() -> bool | None:
            return True if (await stack.engine_state()).running == 0 else None

        await eventually(is_idle, "an idle engine", 10)
        await asyncio.sleep(1.0)
        after = {r.digest: r.served for r in (await stack.engine_state()).residents}
        assert after == served, "an engine was asked after everybody had gone"
        assert served[sums["digest"]] >= admitted


async def test_hang_up_while_loading_ends_the_load_within_a_second(stack: Stack) -> None:
    # Another seed: the same training would give the digest that another policy answers with.
    training = {"steps": 4, "batch_rows": 8, "seed": 23}
    revision = await life_of(stack, "left", promotion={"rule": "manual"}, training=training)
    assert revision["state"] == "eligible", revision

    async def is_cold() -> bool | None:
        residents = (await stack.engine_state()).residents
        return True if revision["digest"] not in {r.digest for r in residents} else None

    await eventually(is_cold, "the evaluated revision's leaving", 60)
    await drop_copy(stack, revision["digest"])
    host = status(stack.state_dir).pid_of("engine-one")
    os.kill(host, signal.SIGSTOP)  # A stage that takes as long as we like.
    try:
        async with stack.client() as client:
            asking = asyncio.create_task(hold_open(client, "lab/left@1", 5))

            async def is_loading() -> bool | None:
                return await is_under_way(stack, revision["digest"]) or None

            await eventually(is_loading, "the load", 4)
            at_s = await hung_up([asking])
            while await is_under_way(stack, revision["digest"]):
                assert time.monotonic() - at_s < 1.0, "the load still stands a second after the hang-up"
                await asyncio.sleep(0.05)
    finally:
        os.kill(host, signal.SIGCONT)

    async def answers() -> bool | None:
        return True if (await stack.engine_state()).residents is not None else None

    await eventually(answers, "the engine host", 30)
    await asyncio.sleep(3.0)
    assert revision["digest"] not in {r.digest for r in (await stack.engine_state()).residents}, "nobody wanted it"
