"""The unmodified openai client against the whole stack: every way to name a revision, streaming, and hanging up."""

import time
from typing import Any

import openai
import pytest
from tests.fixtures_stack import BASE, Stack, eventually

pytestmark = pytest.mark.engine


@pytest.fixture
async def client(stack: Stack) -> Any:
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=0) as client:
        yield client


@pytest.mark.parametrize("selector", ["", "@production", "@1", "@step-4", "@digest"])
async def test_completion_names_the_digest_however_the_revision_was_asked_for(
    client: openai.AsyncOpenAI, sums: dict[str, Any], selector: str
) -> None:
    model = "lab/sums" + (f"@{sums['digest']}" if selector == "@digest" else selector)
    answer = await client.completions.with_raw_response.create(
        model=model, prompt="2 plus 2 is", max_tokens=3, temperature=0
    )
    body = answer.parse()
    assert answer.headers["x-openmint-revision"] == sums["digest"]
    assert sums["digest"] in (body.system_fingerprint or "")
    assert body.model == model
    assert body.choices[0].text


async def test_chat_streams_with_the_caller_s_own_model_name(client: openai.AsyncOpenAI, sums: dict[str, Any]) -> None:
    stream = await client.chat.completions.create(
        model="lab/sums",
        messages=[{"role": "user", "content": "2 plus 2 is"}],
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert {chunk.model for chunk in chunks} == {"lab/sums"}
    assert all(sums["digest"] in (chunk.system_fingerprint or "") for chunk in chunks)
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 0


async def test_base_model_answers_by_its_own_name_only(client: openai.AsyncOpenAI, sums: dict[str, Any]) -> None:
    answer = await client.completions.with_raw_response.create(model=BASE, prompt="2 plus 2 is", max_tokens=1)
    assert answer.headers["x-openmint-revision"] == "base"
    models = [model.id async for model in client.models.list()]
    assert BASE in models and "lab/sums" in models


@pytest.mark.parametrize("model", ["lab/absent", "lab/sums@99", "lab/sums@nowhere", "other/sums"])
async def test_unknown_or_foreign_model_is_not_found(
    client: openai.AsyncOpenAI, sums: dict[str, Any], model: str
) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.completions.create(model=model, prompt="1", max_tokens=1)


async def test_wrong_key_is_refused(stack: Stack, sums: dict[str, Any]) -> None:
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="sk-nobody", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.completions.create(model="lab/sums", prompt="1", max_tokens=1)


async def test_hang_up_in_a_stream_stops_the_engine_within_a_second(
    stack: Stack, client: openai.AsyncOpenAI, sums: dict[str, Any]
) -> None:
    stream = await client.completions.create(
        model="lab/sums", prompt="Count:", max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    await anext(aiter(stream))

    async def is_busy() -> bool | None:
        return True if (await stack.engine_state()).running > 0 else None

    await eventually(is_busy, "the engine's own word that it runs", 10)
    await stream.close()
    hung_up = time.monotonic()
    while (await stack.engine_state()).running > 0:
        assert time.monotonic() - hung_up < 10, "the engine still generates 10 s after the hang-up"
    # A look at the engine takes up to a heartbeat's second by itself.
    assert time.monotonic() - hung_up < 2.2
