"""Promotion, rejection, rollback: what production answers with, and what a rollback costs."""

from typing import Any

import httpx
import pytest
from tests.fixtures_stack import SUMS, Stack, life_of

pytestmark = pytest.mark.engine


async def digest_of_production(client: httpx.AsyncClient, policy: str) -> str:
    body = {"model": f"lab/{policy}", "prompt": "1 plus 2 is", "max_tokens": 1}
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-openmint-revision"]


async def loads(stack: Stack) -> set[str]:
    """Names of all loads on the engine now; a name is never used twice, so a new attach is a new name."""
    return {resident.adapter_name for resident in (await stack.engine_state()).residents}


async def test_second_revision_is_promoted_and_rolled_back_without_an_attach(
    stack: Stack, sums: dict[str, Any]
) -> None:
    second = await life_of(stack, "sums", training={"steps": 5, "batch_rows": 8, "seed": 7})
    assert second["state"] == "eligible", second
    async with stack.client() as client:
        moved = await client.put(
            "/v1/policies/sums/aliases/production?wait=visible", json={"revision": str(second["number"])}
        )
        assert moved.status_code == 200, moved.text
        assert await digest_of_production(client, "sums") == second["digest"]
        before = await loads(stack)
        back = await client.post("/v1/policies/sums/aliases/production/rollback?wait=visible", json={})
        assert back.status_code == 200 and back.json()["digest"] == sums["digest"], back.text
        assert await digest_of_production(client, "sums") == sums["digest"]
        assert await loads(stack) <= before


async def test_revision_that_learned_the_wrong_thing_is_rejected_and_production_stays(
    stack: Stack, sums: dict[str, Any]
) -> None:
    wrong = [{"prompt": row["prompt"], "completion": " bananas"} for row in SUMS]
    revision = await life_of(
        stack,
        "sums",
        dataset={"rows": wrong},
        training={"steps": 6, "batch_rows": 8},
        evaluation={"held_out": {"rows": SUMS}, "scorer": "loss", "min_gain_over_base": 0.0},
    )
    assert revision["state"] == "rejected", revision
    async with stack.client() as client:
        assert await digest_of_production(client, "sums") == sums["digest"]
        refused = await client.put("/v1/policies/sums/aliases/production", json={"revision": str(revision["number"])})
        assert refused.status_code == 409 and refused.json()["code"] == "not_eligible", refused.text


async def test_alias_conflict_names_the_versions(stack: Stack, sums: dict[str, Any]) -> None:
    async with stack.client() as client:
        answer = await client.put(
            "/v1/policies/sums/aliases/production", json={"revision": "1", "expected_version": 9999}
        )
        assert answer.status_code == 409
        assert answer.json()["code"] == "alias_conflict"


async def test_another_tenant_sees_nothing(stack: Stack, sums: dict[str, Any]) -> None:
    async with stack.client(stack.other_key) as stranger:
        for path in ("/v1/policies/sums", "/v1/policies/sums/revisions", "/v1/policies/sums/aliases"):
            assert (await stranger.get(path)).status_code == 404


async def test_bad_events_are_answered_and_nothing_stops(stack: Stack, sums: dict[str, Any]) -> None:
    for body in (b"{", b'{"policy": "x", "base": "smollm2-135m", "dataset": {"rows": []}, "learning_rat": 1}'):
        await stack.publish(body, token="bad")
    revision = await life_of(stack, "after-bad-events", training={"steps": 2, "batch_rows": 4})
    assert revision["state"] in ("eligible", "rejected")
