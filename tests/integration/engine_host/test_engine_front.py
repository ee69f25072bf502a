"""The plug-in's front on a real vLLM: routes, keys, admission, counts."""

import asyncio
import time

import httpx
import pytest
from tests.fixtures_engine import MAX_RUNNING, RunningEngine

pytestmark = pytest.mark.engine

LONG = {"prompt": "Once upon a time", "max_tokens": 100, "ignore_eos": True, "stream": True}


async def residents_in_flight(engine: RunningEngine) -> dict[str, int]:
    return {r.adapter_name: r.in_flight for r in (await engine.engine.state()).residents}


async def test_an_adapter_answers_under_its_name_and_the_answer_says_which_revision(fp32_engine: RunningEngine):
    digest = await fp32_engine.publish()
    (name,) = await fp32_engine.attach(digest)
    async with fp32_engine.http() as http:
        messages = [{"role": "user", "content": "Say hello."}]
        answer = await http.post("/v1/chat/completions", json={"model": name, "messages": messages, "max_tokens": 4})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-openmint-revision"] == digest
        assert answer.headers["x-openmint-boot"] == str((await fp32_engine.engine.state()).boot_id)
        assert answer.json()["model"] == name
        base = await http.post("/v1/completions", json={"model": fp32_engine.base.name, "prompt": "a", "max_tokens": 1})
        assert base.headers["x-openmint-revision"] == "base"


@pytest.mark.parametrize(
    "model",
    ["acme/tone", "acme/tone@000000000000#1", "gpt-4", "../../etc/passwd", "SMOLLM2-135M", "smollm2-135m ", "a" * 5000],
)
async def test_a_model_that_is_not_here_is_absent_and_never_answered_by_the_base(
    fp32_engine: RunningEngine, model: str
):
    async with fp32_engine.http() as http:
        answer = await http.post("/v1/completions", json={"model": model, "prompt": "a", "max_tokens": 1})
    assert answer.status_code == 503
    assert answer.headers["x-openmint-verdict"] == "absent"
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{}", b'{"model": ""}', b'{"model": null}', b"[" * 100_000])
async def test_a_body_that_names_no_model_is_a_mistake_of_the_caller(fp32_engine: RunningEngine, body: bytes):
    async with fp32_engine.http() as http:
        answer = await http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "model" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
        ("POST", "/collective_rpc"),
        ("POST", "/reset_prefix_cache"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/v1/completions"),
        ("DELETE", "/v1/models"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1//completions"),
        ("GET", "/version"),
    ],
)
async def test_no_other_route_of_vllm_exists(fp32_engine: RunningEngine, method: str, path: str):
    async with fp32_engine.http() as http:
        answer = await http.request(method, path, json={"lora_name": "x", "lora_path": "/tmp"})
    assert answer.status_code == 404


async def test_keys_are_needed_and_do_not_open_each_others_doors(fp32_engine: RunningEngine):
    async with fp32_engine.http() as http:
        url = str(http.base_url)
    body = {"model": fp32_engine.base.name, "prompt": "a", "max_tokens": 1}
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as http:
        assert (await http.post("/v1/completions", json=body)).status_code == 401
        wrong = {"authorization": f"Bearer {fp32_engine.control_key}"}
        assert (await http.post("/v1/completions", json=body, headers=wrong)).status_code == 401
        assert (await http.get("/metrics")).status_code == 401
        assert (await http.get("/health")).status_code == 200
        for key in (fp32_engine.inference_key, fp32_engine.control_key, "x"):
            answer = await http.get("/openmint/state", headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == 404
    async with httpx.AsyncClient(base_url=fp32_engine.control_url, trust_env=False) as control:
        for key, path, status in (
            (fp32_engine.read_key, "/control/residents", 200),
            (fp32_engine.read_key, "/control/state", 401),
            (fp32_engine.inference_key, "/control/residents", 401),
            (fp32_engine.control_key, "/control/state", 200),
            ("x", "/control/state", 401),
        ):
            answer = await control.get(path, headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == status, (path, answer.text)


async def test_a_body_above_the_limit_is_refused_before_it_is_read(fp32_engine: RunningEngine):
    async with fp32_engine.http() as http:
        content = b'{"model": "' + b"x" * (9 << 20) + b'"}'
        try:
            answer = await http.post("/v1/completions", content=content)
        except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
            return  # the answer was sent and the connection closed while the body was still being written
        assert answer.status_code == 413


async def test_a_full_engine_says_busy_and_admits_again_when_there_is_room(fp32_engine: RunningEngine):
    """Tenants take turns, so that no share is what refuses."""
    async with fp32_engine.http() as http:
        body = {"model": fp32_engine.base.name, "prompt": "a", "max_tokens": 30, "ignore_eos": True}

        async def ask(number: int) -> httpx.Response:
            return await http.post("/v1/completions", json=body, headers={"x-openmint-tenant": f"t{number}"})

        answers = await asyncio.gather(*(ask(number) for number in range(MAX_RUNNING + 8)))
        refused = [answer for answer in answers if answer.status_code == 503]
        assert len(answers) - len(refused) >= MAX_RUNNING
        assert refused
        assert {answer.headers["x-openmint-verdict"] for answer in refused} == {"busy"}
        assert (await ask(0)).status_code == 200


async def test_one_tenant_does_not_get_the_whole_engine(fp32_engine: RunningEngine):
    async with fp32_engine.http() as http:
        body = {"model": fp32_engine.base.name, "prompt": "a", "max_tokens": 30, "ignore_eos": True}
        greedy = [asyncio.create_task(http.post("/v1/completions", json=body)) for _ in range(MAX_RUNNING + 2)]
        await asyncio.sleep(0.1)
        modest = await http.post(
            "/v1/completions", json={**body, "max_tokens": 1}, headers={"x-openmint-tenant": "modest"}
        )
        statuses = sorted(answer.status_code for answer in await asyncio.gather(*greedy))
        assert modest.status_code == 200
        assert statuses.count(503) >= 2


async def test_a_hang_up_ends_the_work_and_its_count(fp32_engine: RunningEngine):
    (name,) = await fp32_engine.attach(await fp32_engine.publish())
    async with fp32_engine.http() as http:
        async with http.stream("POST", "/v1/completions", json={"model": name, **LONG}) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            assert await residents_in_flight(fp32_engine) == {name: 1}
        began = time.monotonic()
        while await residents_in_flight(fp32_engine) != {name: 0}:
            assert time.monotonic() - began < 5
            await asyncio.sleep(0.02)
        with pytest.raises(httpx.ReadTimeout):
            await http.post(
                "/v1/completions", json={"model": name, **LONG, "max_tokens": 1000, "stream": False}, timeout=0.5
            )
        began = time.monotonic()
        while await residents_in_flight(fp32_engine) != {name: 0}:
            assert time.monotonic() - began < 10
            await asyncio.sleep(0.02)


async def test_removal_waits_for_requests_in_flight_and_admits_again_when_it_gives_up(fp32_engine: RunningEngine):
    (name,) = await fp32_engine.attach(await fp32_engine.publish())
    short = {"model": name, "prompt": "a", "max_tokens": 1}
    async with fp32_engine.http() as http:
        async with http.stream("POST", "/v1/completions", json={"model": name, **LONG}) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            removing = asyncio.create_task(fp32_engine.engine.remove(fp32_engine.stamp(), name, 0.5))
            await asyncio.sleep(0.2)
            draining = await http.post("/v1/completions", json=short)
            assert draining.headers["x-openmint-verdict"] == "absent"
            assert await removing is False
            assert (await http.post("/v1/completions", json=short)).status_code == 200
            removing = asyncio.create_task(fp32_engine.engine.remove(fp32_engine.stamp(), name, 60))
            async for line in lines:
                assert "error" not in line
        assert await removing is True
        gone = await http.post("/v1/completions", json=short)
        assert gone.headers["x-openmint-verdict"] == "absent"


async def test_vllm_lists_the_adapters_that_are_here_and_no_others(fp32_engine: RunningEngine):
    first, second = await fp32_engine.attach(await fp32_engine.publish(), await fp32_engine.publish())
    assert await fp32_engine.engine.remove(fp32_engine.stamp(), first, 10)
    async with fp32_engine.http() as http:
        models = {model["id"] for model in (await http.get("/v1/models")).json()["data"]}
    assert models == {fp32_engine.base.name, second}


@pytest.mark.parametrize("label", ["acme", "Acme/Tone", "acme/tone\r\nx-evil: 1", "../x", "a/b/c", "acme/" + "x" * 64])
async def test_a_label_that_is_no_policy_name_is_refused(fp32_engine: RunningEngine, label: str):
    digest = await fp32_engine.publish()
    body = {"epoch": 1, "command": 1, "requests": [{"digest": digest, "label": label}]}
    headers = {"authorization": f"Bearer {fp32_engine.control_key}"}
    async with httpx.AsyncClient(base_url=fp32_engine.control_url, headers=headers, trust_env=False) as control:
        answer = await control.post("/control/attach", json=body)
    assert answer.status_code == 400
    assert answer.json()["code"] == "bad_request"
    assert "label" in answer.json()["detail"]
