"""Inference through the front door, with the unmodified openai client and with bare HTTP."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import httpx
import openai
import pytest

from openmint.events import Cause

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def client(world) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{world.url}/v1", api_key=await world.key(), max_retries=0, timeout=20
    ) as opened:
        yield opened


async def eventually(condition, timeout_s: float = 5.0) -> float:
    """Seconds until the condition held."""
    started_s = time.monotonic()
    while not condition():
        assert time.monotonic() - started_s < timeout_s, "it never became so"
        await asyncio.sleep(0.01)
    return time.monotonic() - started_s


async def test_the_openai_client_chats_by_every_kind_of_name(world, client):
    revision = await world.resident()
    selectors = ("", "@production", "@1", f"@step-{revision.step}", f"@{revision.digest}")
    for model in [f"{world.model}{selector}" for selector in selectors]:
        answer = await client.chat.completions.create(model=model, messages=HELLO, max_tokens=5)
        assert answer.model == model
        assert answer.system_fingerprint == f"{world.model}@{revision.digest}"
        assert answer.choices[0].message.content == "t0 t1 t2 "
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3


async def test_the_openai_client_completes_and_streams(world, client):
    revision = await world.resident()
    answer = await client.completions.create(model=world.model, prompt="once")
    assert answer.choices[0].text == "t0 t1 t2 "
    stream = await client.chat.completions.create(
        model=world.model, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert {chunk.model for chunk in chunks} == {world.model}
    assert {chunk.system_fingerprint for chunk in chunks} == {f"{world.model}@{revision.digest}"}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "t0 t1 t2 "
    assert chunks[-1].usage.completion_tokens == 3
    silent = await client.completions.create(model=world.model, prompt="once", stream=True)
    assert all(chunk.usage is None for chunk in [chunk async for chunk in silent])


async def test_the_openai_client_lists_models_and_asks_the_base(world, client):
    await world.resident()
    names = [model.id async for model in await client.models.list()]
    assert "tiny" in names
    assert [name for name in names if "/" in name] == [world.model]
    assert (await client.models.retrieve(f"{world.model}@production")).owned_by == world.tenant
    answer = await client.chat.completions.create(model="tiny", messages=HELLO)
    assert answer.system_fingerprint == "tiny@sha256:" + "b" * 64
    assert world.engine.seen[-1].body["model"] == "tiny"


async def test_errors_are_those_that_the_openai_client_knows(world, client):
    await world.resident()
    with pytest.raises(openai.NotFoundError, match="no policy acme-"):
        await client.chat.completions.create(model=f"{world.tenant}/nobody", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match="temprature"):
        await client.chat.completions.create(model=world.model, messages=HELLO, extra_body={"temprature": 1})
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="om00.nothing").chat.completions.create(model="tiny", messages=HELLO)
    world.engine.refusal = "this model's maximum context length is 8 tokens"
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        await client.chat.completions.create(model=world.model, messages=HELLO)


async def test_an_answer_names_revision_and_request_and_the_engine_gets_salt_and_tenant(world, http):
    revision = await world.resident()
    body = {"model": world.model, "messages": HELLO, "user": "anna"}
    answer = await http.post("/v1/chat/completions", json=body, headers={"x-request-id": "my-own-id"})
    assert answer.headers["x-openmint-revision"] == revision.digest
    assert answer.headers["x-openmint-request-id"] == "my-own-id"
    seen = world.engine.seen[0]
    assert seen.tenant == world.tenant
    assert len(seen.body["cache_salt"]) == 64
    assert "user" not in seen.body
    async with await world.http("other") as other:
        await other.post("/v1/chat/completions", json={"model": "tiny", "messages": HELLO})
    assert world.engine.seen[1].body["cache_salt"] != seen.body["cache_salt"]


async def test_usage_is_counted_by_revision(world, http):
    revision = await world.resident()
    for stream in (False, True):
        await http.post("/v1/chat/completions", json={"model": world.model, "messages": HELLO, "stream": stream})
    rows = []
    for _ in range(100):
        rows = (await http.get("/v1/usage")).json()
        if rows:
            break
        await asyncio.sleep(0.1)
    (row,) = rows
    assert (row["digest"], row["requests"], row["prompt_tokens"]) == (revision.digest, 2, 10)
    assert row["completion_tokens"] == 6


async def test_a_cold_request_waits_for_its_load(world, http):
    revision = await world.served()
    world.load_delay_s = 0.2
    answer = await http.post("/v1/chat/completions", json={"model": world.model, "messages": HELLO})
    assert answer.status_code == 200
    assert answer.headers["x-openmint-revision"] == revision.digest
    assert [(load.digest, load.policy, load.tenant) for load in world.loads] == [
        (revision.digest, "support", world.tenant)
    ]


async def test_requests_for_a_loading_revision_share_the_load(world, http):
    await world.served()
    world.load_delay_s = 0.2
    body = {"model": world.model, "messages": HELLO}
    answers = await asyncio.gather(*(http.post("/v1/chat/completions", json=body) for _ in range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len(world.loads) == 1


async def test_a_stream_that_waits_gets_comment_lines_and_then_its_tokens(world, http):
    await world.served()
    world.load_delay_s = 1.0
    body = {"model": world.model, "messages": HELLO, "stream": True}
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        lines = [line async for line in answer.aiter_lines()]
    assert lines.count(": waiting") >= 2
    assert lines[-2] == "data: [DONE]" or lines[-1] == "data: [DONE]"


async def test_a_load_that_fails_early_is_a_real_status_and_later_an_event(world, http):
    await world.served()
    world.load_failure = Cause(code="overloaded", detail="the queue is full")
    body = {"model": world.model, "messages": HELLO, "stream": True}
    early = await http.post("/v1/chat/completions", json=body)
    assert early.status_code == 503
    assert early.headers["retry-after"] == "7"
    assert early.json()["error"]["message"] == "the queue is full"
    world.load_delay_s = 0.8
    late = await http.post("/v1/chat/completions", json=body)
    assert late.status_code == 200
    events = [json.loads(line[6:]) for line in late.text.splitlines() if line.startswith("data: ")]
    assert events[-1]["error"]["code"] == "overloaded"


async def test_a_busy_engine_and_an_absent_adapter_are_invisible(world, http):
    await world.resident()
    world.engine.verdicts.extend(["busy", "absent", "busy"])
    answer = await http.post("/v1/chat/completions", json={"model": world.model, "messages": HELLO})
    assert answer.status_code == 200
    assert not world.engine.verdicts


@pytest.mark.slow
async def test_an_engine_that_stays_busy_gives_a_clear_503_at_the_deadline(world, http):
    await world.resident()
    world.engine.is_full = True
    answer = await http.post("/v1/chat/completions", json={"model": world.model, "messages": HELLO})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "overloaded"
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.slow
async def test_a_tenant_may_have_only_so_many_waiting_and_another_is_not_held_up(world, http):
    await world.resident()
    await world.resident("support", "other")
    await world.runs_at_most(1)
    world.engine.token_delay_s = 0.2
    body = {"model": world.model, "messages": HELLO}
    asked = [asyncio.create_task(http.post("/v1/chat/completions", json=body)) for _ in range(8)]
    done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED, timeout=3)
    (refused,) = [task.result() for task in done]
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "overloaded"
    assert int(refused.headers["retry-after"]) >= 1
    async with await world.http("other") as other:
        mine = await other.post("/v1/chat/completions", json={"model": "other/support", "messages": HELLO})
        assert mine.status_code == 200
    assert sorted(answer.status_code for answer in await asyncio.gather(*asked)) == [200] * 7 + [429]


async def test_the_engine_with_the_least_outstanding_work_is_asked(world, http):
    revision = await world.resident()
    second = await world.add_engine("engine-2")
    await second.hold(world.bus, revision.digest)
    for engine in world.engines:
        engine.token_delay_s = 0.2
    body = {"model": world.model, "messages": HELLO}
    for _ in range(100):
        await asyncio.gather(*(http.post("/v1/chat/completions", json=body) for _ in range(2)))
        if second.seen:
            break
    assert abs(len(second.seen) - len(world.engine.seen)) <= len(world.engine.seen)


async def test_another_engine_answers_when_one_says_that_it_lacks_the_adapter(world, http):
    revision = await world.resident()
    second = await world.add_engine("engine-2")
    await second.hold(world.bus, revision.digest)
    world.engine.verdicts.extend(["absent"] * 3)
    answer = await http.post("/v1/chat/completions", json={"model": world.model, "messages": HELLO})
    assert answer.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_of_another_revision_never_reaches_the_client(world, http, stream: bool):
    await world.resident()
    world.engine.told_revision = "sha256:" + "0" * 64
    answer = await http.post("/v1/chat/completions", json={"model": world.model, "messages": HELLO, "stream": stream})
    assert answer.status_code == 502
    assert "t0" not in answer.text
    assert answer.json()["error"]["code"] == "engine_failed"


async def test_the_base_is_never_served_in_a_policys_place(world, http):
    await world.resident()
    world.engine.told_revision = "base"
    answer = await http.post("/v1/completions", json={"model": world.model, "prompt": "x"})
    assert answer.status_code == 502


async def test_an_engine_that_dies_gives_502_whole_and_an_error_event_in_mid_stream(world, http):
    await world.resident()
    world.engine.dies_after_tokens, world.engine.token_delay_s = 2, 0.05
    whole = await http.post("/v1/chat/completions", json={"model": world.model, "messages": HELLO})
    assert whole.status_code == 502
    body = {"model": world.model, "messages": HELLO, "stream": True}
    stream = await http.post("/v1/chat/completions", json=body)
    assert stream.status_code == 200
    events = [json.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data: ")]
    assert len(events) == 3
    assert events[-1]["error"]["type"] == "server_error"


async def test_hanging_up_stops_the_engines_stream_within_a_second(world, http):
    await world.resident()
    world.engine.tokens, world.engine.token_delay_s = 1000, 0.05
    body = {"model": world.model, "messages": HELLO, "stream": True}
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for _ in answer.aiter_lines():
            break
    started_s = time.monotonic()
    await asyncio.wait_for(world.engine.seen[0].was_cut_off.wait(), 5)
    assert time.monotonic() - started_s < 1


async def test_hanging_up_stops_an_answer_that_is_not_streamed(world, http):
    await world.resident()
    world.engine.tokens, world.engine.token_delay_s = 100, 0.1
    body = {"model": world.model, "messages": HELLO}
    asking = asyncio.create_task(http.post("/v1/chat/completions", json=body))
    await eventually(lambda: bool(world.engine.seen))
    asking.cancel()
    started_s = time.monotonic()
    await asyncio.wait_for(world.engine.seen[0].was_cut_off.wait(), 5)
    assert time.monotonic() - started_s < 1


@pytest.mark.parametrize("stream", [False, True])
async def test_hanging_up_while_loading_ends_the_wait_and_the_interest(world, http, stream: bool):
    await world.served()
    world.answers_loads = False
    body = {"model": world.model, "messages": HELLO, "stream": stream}
    asking = asyncio.create_task(http.post("/v1/chat/completions", json=body))
    await eventually(lambda: bool(world.loads))
    assert await waiting(http) == 1
    asking.cancel()
    await becomes_idle(http)


async def test_hanging_up_while_queued_leaves_the_queue(world, http):
    await world.resident()
    world.engine.is_full = True
    body = {"model": world.model, "messages": HELLO}
    asking = asyncio.create_task(http.post("/v1/chat/completions", json=body))
    for _ in range(100):
        if await waiting(http) == 1:
            break
        await asyncio.sleep(0.02)
    asking.cancel()
    await becomes_idle(http)
    world.engine.is_full = False
    await asyncio.sleep(0.3)
    assert not world.engine.seen


async def waiting(http: httpx.AsyncClient) -> float:
    text = (await http.get("/metrics")).text
    (line,) = [line for line in text.splitlines() if line.startswith("openmint_gateway_waiting ")]
    return float(line.split()[1])


async def becomes_idle(http: httpx.AsyncClient) -> None:
    started_s = time.monotonic()
    while await waiting(http):
        assert time.monotonic() - started_s < 1, "it still waits a second after the client has gone"
        await asyncio.sleep(0.02)
