"""Training requests from the bus and over HTTP: what is accepted, and each way of being refused."""

import asyncio
import json
import time
from typing import Any

import pytest
from nats.js.errors import APIError

from openmint.bus import dead_letters
from openmint.bus.tail import Tail
from openmint.catalog import jobs
from openmint.events import JobAccepted, JobRefused
from openmint_gateway.settings import GatewaySettings

ROWS = [{"prompt": "a", "completion": " b"}, {"messages": [{"role": "assistant", "content": "c"}]}]
GOOD: dict[str, Any] = {"policy": "support", "base": "tiny", "dataset": {"rows": ROWS}}


class Answers:
    """What the bus told a tenant."""

    def __init__(self) -> None:
        self.facts: list[JobAccepted | JobRefused] = []

    async def about(self, token: str, timeout_s: float = 10.0) -> JobAccepted | JobRefused:
        """The answer to a request: refused by its token, accepted by its idempotency key."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            for fact in self.facts:
                if token in (getattr(fact, "request_token", None), getattr(fact, "idempotency_key", None)):
                    return fact
            await asyncio.sleep(0.02)
        raise AssertionError(f"nothing was told of {token}")


@pytest.fixture
async def answers(world):
    heard = Answers()
    following = Tail(world.bus, [JobAccepted, JobRefused], heard.facts.append, stream="EVENTS")
    task = asyncio.create_task(following.run())
    await following.attached.wait()
    yield heard
    task.cancel()


async def publish(world, token: str, body: bytes | dict[str, Any], tenant: str = "") -> None:
    """As an upstream system does it: the body alone, no header."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    await world.bus.js.publish(f"openmint.train.requested.v1.{tenant or world.tenant}.{token}", data, timeout=10)


async def test_a_bare_body_becomes_a_job_with_its_rows_in_the_store(world, answers, http):
    await publish(world, "one", {**GOOD, "idempotency_key": "k1", "x_team": "search"})
    accepted = await answers.about("k1")
    assert isinstance(accepted, JobAccepted)
    assert accepted.tenant == world.tenant
    async with world.catalog.connection() as conn:
        job = await jobs.find_job(conn, accepted.job_id, world.tenant)
    assert set(job.spec["dataset"]) == {"digest"}
    assert job.spec["x_team"] == "search"
    (dataset,) = (await http.get("/v1/data")).json()
    assert (dataset["digest"], dataset["rows"]) == (job.spec["dataset"]["digest"], 2)


async def test_the_same_request_again_gives_the_same_job_and_another_with_its_key_is_refused(world, answers, http):
    await publish(world, "one", {**GOOD, "idempotency_key": "k1"})
    accepted = await answers.about("k1")
    again = await http.post("/v1/jobs", json=GOOD, headers={"idempotency-key": "k1"})
    assert again.status_code == 202
    assert again.json()["job_id"] == str(accepted.job_id)
    await publish(world, "other", {**GOOD, "idempotency_key": "k1", "training": {"steps": 7}})
    refused = await answers.about("other")
    assert isinstance(refused, JobRefused)
    assert (refused.cause.code, refused.cause.field) == ("idempotency_conflict", "idempotency_key")
    assert len((await http.get("/v1/jobs")).json()["items"]) == 1


BAD_VALUES = [
    ({"base": "gpt-17"}, "not_found", "base", "tiny"),
    ({"adapter": {"rank": 65}}, "bad_request", "adapter.rank", "64"),
    ({"adapter": {"targets": ["z_proj"]}}, "bad_request", "adapter.targets", "q_proj, v_proj"),
    ({"adapter": {"targets": []}}, "bad_request", "adapter.targets", "empty"),
    ({"dataset": {"rows": []}}, "bad_dataset", "dataset.rows", "no rows"),
    ({"dataset": {"rows": [{"prompt": "a"}]}}, "bad_dataset", "dataset.rows", "row 1"),
    ({"dataset": {"rows": [ROWS[0], {"x": 1}]}}, "bad_dataset", "dataset.rows", "row 2"),
    ({"dataset": {"rows": [{"messages": []}]}}, "bad_dataset", "dataset.rows", "row 1"),
    ({"dataset": {"digest": "sha256:" + "0" * 64}}, "bad_dataset", "dataset.digest", "no dataset"),
    ({"evaluation": {"held_out": {"rows": [{"y": 1}]}}}, "bad_dataset", "evaluation.held_out.rows", "row 1"),
    (
        {"evaluation": {"held_out": {"rows": [ROWS[0]]}, "scorer": "label", "labels": [" x", " y"]}},
        "bad_dataset",
        "evaluation.held_out.rows",
        "row 1",
    ),
    ({"promotion": {"alias": "7"}}, "bad_name", None, "alias"),
    ({"training": {"steps": 5, "revision_at_steps": [6]}}, "bad_request", "training.revision_at_steps", "6"),
]


@pytest.mark.parametrize(("change", "code", "field", "said"), BAD_VALUES)
async def test_a_request_that_can_not_be_honoured_is_refused_with_its_cause(
    world, answers, http, change: dict[str, Any], code: str, field: str | None, said: str
):
    await publish(world, "wrong", {**GOOD, **change})
    refused = await answers.about("wrong")
    assert isinstance(refused, JobRefused)
    assert (refused.tenant, refused.cause.code, refused.cause.field) == (world.tenant, code, field)
    assert said in refused.cause.detail
    answer = await http.post("/v1/jobs", json={**GOOD, **change})
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["code"], problem.get("field"), problem["detail"]) == (code, field, refused.cause.detail)
    assert not (await http.get("/v1/jobs")).json()["items"]


BAD_SCHEMAS = [
    (b"", None),
    (b"\xff\xfe nonsense", None),
    (b"{", None),
    (b"[1]", None),
    (b'{"a":' * 200 + b"1" + b"}" * 200, None),
    ({**GOOD, "learning_rat": 1}, "learning_rat"),
    ({**GOOD, "optimizer": {"learning_rat": 1}}, "learning_rat"),
    ({**GOOD, "adapter": {"rank": 0}}, "rank"),
    ({**GOOD, "adapter": {"rank": 100_000}}, "rank"),
    ({"policy": "support", "base": "tiny"}, "dataset"),
    ({**GOOD, "tenant": "somebody-else"}, "tenant"),
]


@pytest.mark.parametrize(("body", "named"), BAD_SCHEMAS, ids=range(len(BAD_SCHEMAS)))
async def test_a_message_that_can_not_be_read_is_refused_and_kept_as_a_dead_letter(
    world, answers, http, body: bytes | dict[str, Any], named: str | None
):
    await publish(world, "wrong", body)
    refused = await answers.about("wrong")
    assert isinstance(refused, JobRefused)
    if named is not None:
        assert named in f"{refused.cause.field} {refused.cause.detail}"
    letters: list[dead_letters.DeadLetter] = []
    for _ in range(200):
        subject = dead_letters.dead_subject(f"openmint.train.requested.v1.{world.tenant}.>")
        letters = await dead_letters.list_dead(world.bus, subject=subject)
        if letters:
            break
        await asyncio.sleep(0.02)
    (letter,) = letters
    assert letter.detail == refused.cause.detail
    answer = await http.post("/v1/jobs", content=body if isinstance(body, bytes) else json.dumps(body))
    assert answer.status_code == 400
    mended = {**GOOD, "idempotency_key": "mended"}
    await dead_letters.replay_dead(world.bus, letter.seq, json.dumps(mended).encode())
    assert isinstance(await answers.about("mended"), JobAccepted)


async def test_a_body_above_the_buss_limit_is_refused_to_its_publishers_face(world):
    with pytest.raises((APIError, Exception), match=r"(?i)payload|exceed|size"):
        await publish(world, "large", b"x" * (2 * 1024 * 1024))


async def test_inline_rows_above_the_limit_are_refused_and_say_what_to_do(world, answers):
    rows = [{"prompt": "p", "completion": "x" * 10_000}] * 30
    await publish(world, "large", {**GOOD, "dataset": {"rows": rows}})
    refused = await answers.about("large")
    assert isinstance(refused, JobRefused)
    assert "openmint data put" in refused.cause.detail


async def test_another_tenants_dataset_does_not_exist(world, http):
    put = await http.post("/v1/data", content=b'{"prompt": "a", "completion": "b"}\n')
    assert put.status_code == 201
    digest = put.json()["digest"]
    async with await world.http(f"{world.tenant}-other") as other:
        answer = await other.post("/v1/jobs", json={**GOOD, "dataset": {"digest": digest}})
    assert answer.json()["code"] == "bad_dataset"
    mine = await http.post("/v1/jobs", json={**GOOD, "dataset": {"digest": digest}})
    assert mine.status_code == 202


async def test_a_tenant_may_have_only_so_many_open_jobs(world, http):
    statuses = [(await http.post("/v1/jobs", json=GOOD)).status_code for _ in range(6)]
    assert statuses == [202] * 5 + [429]


async def test_a_policy_on_another_base_is_a_conflict(world, http):
    async with world.catalog.transaction() as conn:
        await conn.execute(
            "insert into base_models (base, digest, locator, modules, config)"
            " select 'twin', decode(repeat('cc', 32), 'hex'), locator, modules, config from base_models"
            " where base = 'tiny' on conflict do nothing"
        )
    assert (await http.post("/v1/jobs", json=GOOD)).status_code == 202
    answer = await http.post("/v1/jobs", json={**GOOD, "base": "twin"})
    assert (answer.status_code, answer.json()["field"]) == (409, "base")


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENMINT_PORT", "9999")
    assert GatewaySettings().port == 9999
