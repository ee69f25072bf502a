"""The control API: aliases, isolation, limits, errors, and the document that describes it."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

import openmint_gateway.openapi as document
from openmint.catalog import Catalog, keys
from openmint.client import Client
from openmint.errors import AliasConflict, AliasFrozen, NotEligible, NotFound, Unauthorised
from openmint.events import TrainRequested

HELLO = [{"role": "user", "content": "hello"}]
JOB: dict[str, Any] = {
    "policy": "support",
    "base": "tiny",
    "dataset": {"rows": [{"prompt": "a", "completion": "b"}]},
}


@pytest.fixture
async def client(world):
    async with Client(world.url, await world.key()) as opened:
        yield opened


async def test_promote_and_roll_back_are_compare_and_set_and_kept(world, client):
    first, second = await world.revision(), await world.revision()
    move = await client.promote("support", "1", expected_version=0, reason="the first")
    assert (move.alias_version, move.number, move.visible) == (1, 1, True)
    with pytest.raises(AliasConflict):
        await client.promote("support", "2", expected_version=0)
    assert (await client.promote("support", str(second.revision_id), expected_version=1)).previous_number == 1
    assert not (await client.promote("support", "2")).changed
    back = await client.roll_back("support", reason="worse")
    assert (back.alias_version, back.digest) == (3, first.digest)
    history = await client.alias_history("support")
    assert [(entry.version, entry.number, entry.reason) for entry in history] == [
        (3, 1, "worse"),
        (2, 2, ""),
        (1, 1, "the first"),
    ]


async def test_a_frozen_alias_does_not_move_until_it_is_thawed(world, client):
    await world.served()
    await world.revision()
    assert (await client.freeze("support")).frozen
    with pytest.raises(AliasFrozen):
        await client.promote("support", "2")
    await client.thaw("support")
    assert (await client.promote("support", "2")).number == 2


async def test_a_rejected_revision_is_not_promoted_until_a_person_waives_it(world, client):
    await world.revision(passed=False)
    with pytest.raises(NotEligible):
        await client.promote("support", "1")
    waived = await client.waive("support", "1", "looked at by hand")
    assert (waived.state, waived.reason) == ("eligible", "waived: looked at by hand")
    assert (await client.promote("support", "1")).number == 1


async def test_a_move_is_answered_from_within_a_quarter_of_a_second(world, client):
    revisions = [await world.revision() for _ in range(2)]
    for revision in revisions:
        await world.engine.hold(world.bus, revision.digest)
    await client.promote("support", "1")
    await client.chat(world.model, "hello")
    delays_ms: list[float] = []
    for turn in range(6):
        wanted = revisions[(turn + 1) % 2]
        await world.promote(wanted)
        started_s = time.monotonic()
        while (await client.chat(world.model, "hello")).revision != wanted.digest:
            assert time.monotonic() - started_s < 5
        delays_ms.append((time.monotonic() - started_s) * 1000)
    print("moves were visible after", [round(delay) for delay in delays_ms], "ms")
    assert sorted(delays_ms)[len(delays_ms) // 2] < 250


async def test_jobs_are_listed_watched_and_cancelled(world, client):
    job = await client.submit(TrainRequested.model_validate(JOB))
    assert (await client.jobs()).items[0].job_id == job.job_id
    states: list[str] = []
    async for seen in client.watch(job.job_id):
        states.append(seen.state)
        if seen.state == "accepted":
            await client.cancel(job.job_id)
    assert states == ["accepted", "cancelled"]
    assert (await client.wait(job.job_id, timeout_s=5)).is_ended


async def test_data_is_named_by_its_digest_and_a_broken_line_is_named_too(world, http):
    rows = b'{"completion": "b", "prompt": "a"}\n\n{"prompt":"c","completion":"d"}'
    first = await http.post("/v1/data", content=rows)
    again = await http.post("/v1/data", content=rows.replace(b": ", b":"))
    assert (first.status_code, first.json()["digest"]) == (201, again.json()["digest"])
    for data, said in (
        (b"", "no rows"),
        (b'{"prompt": 1}\nxx', "line 2"),
        (b'{"prompt": "a"}', "row 1"),
        (b"7", "line 1"),
    ):
        answer = await http.post("/v1/data", content=data)
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_dataset")
        assert said in answer.json()["detail"]


@pytest.mark.slow
async def test_a_body_of_64_megabytes_is_refused_and_the_process_stays_up(world, http):
    large = b"x" * (64 * 1024 * 1024 + 1)

    async def in_pieces():
        for at in range(0, len(large), 1 << 20):
            yield large[at : at + (1 << 20)]

    for path in ("/v1/chat/completions", "/v1/jobs", "/v1/data", "/v1/policies"):
        declared = await http.post(path, content=large)
        assert declared.status_code == 413, path
        streamed = await http.post(path, content=in_pieces())
        assert streamed.status_code == 413, path
    assert (await http.get("/healthz")).status_code == 200


async def test_headers_and_addresses_have_caps(world, http):
    many = {f"x-{number}": "1" for number in range(150)}
    for path in ("/v1/models", "/v1/policies"):
        assert (await http.get(path, headers=many)).status_code == 431
        assert (await http.get(path, headers={"x-large": "y" * 40_000})).status_code in (400, 431)
        assert (await http.get(path + "?" + "z" * 9000)).status_code == 431


async def test_every_wrong_key_gives_the_same_answer(world, http):
    key_id, _, _ = (await world.key()).partition(".")
    bodies: set[str] = set()
    for text in (f"{key_id}.wrong", "om0000.wrong", "wrong", f"{key_id}."):
        for path in ("/v1/policies", "/v1/models"):
            answer = await http.get(path, headers={"authorization": f"Bearer {text}"})
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            body = answer.json()
            bodies.add(body.get("detail") or body["error"]["message"])
    assert len(bodies) == 1
    assert (await http.get("/v1/policies", headers={"authorization": ""})).status_code == 401


async def test_a_key_without_the_scope_is_forbidden_and_a_revoked_one_ends_here_at_once(world, http):
    async with await world.http(scopes="read") as reader:
        assert (await reader.get("/v1/policies")).status_code == 200
        for method, path in (("POST", "/v1/jobs"), ("POST", "/v1/data"), ("PUT", "/v1/policies/a/aliases/b")):
            answer = await reader.request(method, path, json={"revision": "1"})
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), path
        chat = await reader.post("/v1/chat/completions", json={"model": "tiny", "messages": HELLO})
        assert chat.status_code == 403
    made = (await http.post("/v1/keys", json={"scopes": ["read"], "label": "short"})).json()
    headers = {"authorization": f"Bearer {made['key']}"}
    assert (await http.get("/v1/policies", headers=headers)).status_code == 200
    assert (await http.delete(f"/v1/keys/{made['key_id']}")).json()["is_live"] is False
    assert (await http.get("/v1/policies", headers=headers)).status_code == 401
    assert "key" not in (await http.get("/v1/keys")).json()[0]


async def test_an_expired_key_is_a_wrong_key(world, catalog_of_world: Catalog):
    async with catalog_of_world.transaction() as conn:
        text, key = await keys.create_key(conn, world.tenant, ["read"], pepper=b"pepper")
        await conn.execute("update api_keys set expires_at = clock_timestamp() where key_id = $1", key.key_id)
    async with Client(world.url, text) as client:
        with pytest.raises(Unauthorised):
            await client.policies()


@pytest.fixture
def catalog_of_world(world) -> Catalog:
    return world.catalog


@pytest.mark.slow
async def test_nothing_of_another_tenant_is_visible_on_any_route(world, http, client):
    revision = await world.resident()
    job = await client.submit(TrainRequested.model_validate(JOB))
    key = (await client.keys())[0]
    policy, digest = "/v1/policies/support", revision.digest
    routes: list[tuple[str, str, Any]] = [
        ("GET", policy, None),
        ("GET", f"{policy}/revisions", None),
        ("GET", f"{policy}/revisions/1", None),
        ("GET", f"{policy}/revisions/{revision.revision_id}", None),
        ("GET", f"{policy}/revisions/{digest}", None),
        ("GET", f"{policy}/revisions/production/evaluations", None),
        ("POST", f"{policy}/revisions/{revision.revision_id}/waive", {"reason": "x"}),
        ("POST", f"{policy}/revisions/{revision.revision_id}/release", {"reason": "x"}),
        ("POST", f"{policy}/revisions/{revision.revision_id}/retire", None),
        ("GET", f"{policy}/aliases", None),
        ("GET", f"{policy}/aliases/production", None),
        ("GET", f"{policy}/aliases/production/history", None),
        ("PUT", f"{policy}/aliases/production", {"revision": "1"}),
        ("PUT", f"{policy}/aliases/production", {"revision": str(revision.revision_id)}),
        ("POST", f"{policy}/aliases/production/rollback", {}),
        ("POST", f"{policy}/aliases/production/freeze", {}),
        ("POST", f"{policy}/aliases/production/thaw", {}),
        ("GET", f"/v1/jobs/{job.job_id}", None),
        ("GET", f"/v1/jobs/{job.job_id}/events", None),
        ("POST", f"/v1/jobs/{job.job_id}/cancel", None),
        ("DELETE", f"/v1/keys/{key.key_id}", None),
        ("GET", f"/v1/models/{world.model}", None),
        ("POST", "/v1/chat/completions", {"model": world.model, "messages": HELLO}),
        ("POST", "/v1/chat/completions", {"model": f"{world.model}@{digest}", "messages": HELLO}),
        ("POST", "/v1/completions", {"model": f"{world.model}@1", "prompt": "x"}),
    ]
    async with await world.http(f"{world.tenant}-other") as other:
        for method, path, body in routes:
            mine = await http.request(method, path, json=body) if method == "GET" and "events" not in path else None
            assert mine is None or mine.status_code == 200, path
            answer = await other.request(method, path, json=body)
            assert answer.status_code == 404, (method, path, answer.text)
            assert (
                str(digest) not in answer.text.replace(path, "").replace(str(body), "")
                or str(digest) in str(body) + path
            )
        for path in ("/v1/policies", "/v1/jobs", "/v1/data", "/v1/usage", "/v1/loads"):
            answer = (await other.get(path)).json()
            assert not (answer["items"] if isinstance(answer, dict) else answer), path
        assert world.tenant not in {item["owned_by"] for item in (await other.get("/v1/models")).json()["data"]}
        absent = await other.post("/v1/completions", json={"model": f"{world.tenant}/no-such", "prompt": "x"})
        present = await other.post("/v1/completions", json={"model": world.model, "prompt": "x"})
        assert absent.text.replace("no-such", "support") == present.text
    assert (await client.alias("support")).version == 1


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "field"),
    [
        ("POST", "/v1/policies", {"name": "Bad Name", "base": "tiny"}, 400, "name"),
        ("POST", "/v1/policies", {"name": "a", "base": "tiny", "bais": 1}, 400, "bais"),
        ("POST", "/v1/policies", {"name": "a", "base": "gpt"}, 404, "base"),
        ("POST", "/v1/policies", b"nonsense", 400, None),
        ("PUT", "/v1/policies/support/aliases/7", {"revision": "1"}, 400, None),
        ("GET", "/v1/policies?limit=0", None, 400, None),
        ("GET", "/v1/jobs/not-an-id", None, 400, None),
        ("GET", "/v1/nothing", None, 404, None),
        ("PATCH", "/v1/policies", {}, 405, None),
        ("POST", "/v1/keys", {"scopes": ["root"]}, 400, "scopes"),
    ],
)
async def test_a_bad_request_gets_a_problem_that_names_the_culprit(
    world, http, method: str, path: str, body: Any, status: int, field: str | None
):
    content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    answer = await http.request(method, path, content=content, headers=headers)
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (answer.status_code, problem["status"]) == (status, status)
    assert problem["request_id"] == answer.headers["x-openmint-request-id"]
    if field is not None:
        assert problem["field"] == field


async def test_pages_follow_each_other_without_a_gap(world, http):
    for number in range(5):
        assert (await http.post("/v1/policies", json={"name": f"p{number}", "base": "tiny"})).status_code == 201
    names: list[str] = []
    after = ""
    while after is not None:
        page = (await http.get(f"/v1/policies?limit=2{f'&after={after}' if after else ''}")).json()
        names += [item["name"] for item in page["items"]]
        after = page["next"]
    assert names == [f"p{number}" for number in range(5)]


async def test_a_quarantined_revision_answers_503_with_the_reason(world, http, client):
    from openmint.catalog import revisions

    revision = await world.resident()
    await client.chat(world.model, "hello")
    async with world.catalog.transaction() as conn:
        await revisions.quarantine(conn, revision.revision_id, "gives nonsense", "gateway")
    for _ in range(100):
        answer = await http.post("/v1/completions", json={"model": world.model, "prompt": "x"})
        if answer.status_code == 503:
            break
        await asyncio.sleep(0.02)
    assert answer.json()["error"]["code"] == "quarantined"
    assert "gives nonsense" in answer.json()["error"]["message"]


async def test_errors_of_the_client_are_those_of_the_gateway(world, client):
    with pytest.raises(NotFound, match="no policy"):
        await client.revisions("nobody")
    with pytest.raises(NotFound, match="no policy"):
        await client.chat(f"{world.tenant}/nobody", "hello")
    with pytest.raises(NotFound):
        async for _ in client.stream_chat(f"{world.tenant}/nobody", "hello"):
            pass


async def test_the_client_streams_a_chat(world, client):
    await world.resident()
    assert "".join([piece async for piece in client.stream_chat(world.model, "hello")]) == "t0 t1 t2 "


async def test_health_readiness_and_metrics(world, http):
    async with httpx.AsyncClient(base_url=world.url, trust_env=False) as nobody:
        assert (await nobody.get("/healthz")).json() == {"status": "ok"}
        assert (await nobody.get("/readyz")).json() == {"catalog": True, "bus": True}
        text = (await nobody.get("/metrics")).text
    assert "openmint_gateway_requests_total" in text
    assert "acme" not in text


async def test_the_document_is_complete_and_the_one_in_the_repository(world, http):
    served = (await http.get("/openapi.json")).json()
    assert served == json.loads(document.document_text())
    kept = Path(__file__).parents[3] / "schemas" / "openapi.json"
    assert kept.read_text() == document.document_text(), "write it again: make schemas"
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/jobs"} <= set(served["paths"])
    assert "learning_rate" in json.dumps(served["components"]["schemas"]["OptimizerSpec"])
