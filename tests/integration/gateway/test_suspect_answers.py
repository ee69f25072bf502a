"""What callers see of an engine that withholds an answer because it is not made of numbers."""

import asyncio

import pytest
from tests.integration.gateway.test_cli_against_gateway import run

from openmint.catalog import revisions

__all__ = ["run"]

HELLO = [{"role": "user", "content": "hello"}]


async def ask(world, http, **more):
    return await http.post("/v1/chat/completions", json={"model": world.model, "messages": HELLO, **more})


async def test_another_engine_answers_in_place_of_a_suspect_one(world, http):
    revision = await world.resident()
    second = await world.add_engine("engine-2")
    await second.hold(world.bus, revision.digest)
    for _ in range(4):
        world.engine.verdicts.append("suspect")
        answer = await ask(world, http)
        assert answer.status_code == 200
        world.engine.verdicts.clear()


async def test_a_request_that_spoils_engines_is_asked_twice_and_no_more(world, http):
    await world.resident()
    world.engine.verdicts.extend(["suspect"] * 5)
    answer = await ask(world, http)
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "engine_failed"
    assert len(world.engine.verdicts) == 3


@pytest.mark.slow
async def test_a_quarantined_policy_never_answers_by_the_base_and_is_released_from_the_command_line(world, http, run):
    revision = await world.resident()
    async with world.catalog.transaction() as conn:
        await revisions.quarantine(conn, revision.revision_id, "alone it gave no finite answer", "keeper")
    before = len(world.engine.seen)
    refused = await ask(world, http)
    assert refused.status_code == 503
    assert "alone it gave no finite answer" in refused.json()["error"]["message"]
    assert len(world.engine.seen) == before
    policy = world.model.partition("/")[2]
    code, out, err = await run("release", policy, str(revision.number), "--reason", "it was the engine")
    assert code == 0, err
    assert "eligible" in out
    async with asyncio.timeout(10):
        while (await ask(world, http)).status_code != 200:
            await asyncio.sleep(0.05)
