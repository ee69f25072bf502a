"""Scorers and probes against a real HTTP server that speaks the engine's contract."""

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from openmint.errors import EngineFailed
from openmint_evaluator.encoded_rows import EncodedDataset, EncodedRow
from openmint_evaluator.measuring import ask_probes, gather_bounded, score_rows
from openmint_evaluator.probes import Probe
from openmint_evaluator.scorers import LABEL, LOSS
from openmint_evaluator.served_model import BASE_REVISION, ServedModel, WrongAnswerer

pytestmark = pytest.mark.slow

IDS = [5, 9, 300, 7, 41, 41, 12]


@pytest.fixture
async def base(engines: dict[str, Any]) -> AsyncIterator[ServedModel]:
    """The base on the fp32 engine."""
    engine = engines["gate-fp32"]
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {engine.KEY}"}) as http:
        yield ServedModel(http, engine.url, "tiny", BASE_REVISION, str(engine.boot_id), "acme")


async def test_prompt_logprobs_are_those_of_the_reference(base: ServedModel, child: Any) -> None:
    (expected,) = await child.logprobs(None, [IDS])
    assert await base.prompt_logprobs(IDS) == pytest.approx(expected, abs=1e-5)


async def test_likeliest_of_the_allowed_tokens_is_chosen(base: ServedModel) -> None:
    allowed = [3, 77, 150, 202]
    chosen = await base.choose_token(IDS, allowed)
    totals = {token: (await base.prompt_logprobs([*IDS, token]))[-1] for token in allowed}
    assert chosen == max(totals, key=totals.__getitem__)


async def test_label_by_first_token_and_by_whole_continuation_agree(base: ServedModel) -> None:
    rows = tuple(EncodedRow(tuple(IDS[: n + 2]), (77,), 0) for n in range(4))
    by_token = EncodedDataset(rows, ((77,), (150,)), "plain")
    whole = EncodedDataset(rows, ((77,), (150,), (150, 3)), "plain")
    first = await score_rows(base, LABEL, by_token, concurrency=3)
    assert {row.value for row in first} <= {0.0, 1.0}
    again = await score_rows(base, LABEL, whole, concurrency=3)
    assert [row.value for row in again] == [row.value for row in first], "the third label is never the likeliest"


async def test_loss_is_the_mean_of_the_completions_logprobs(base: ServedModel, child: Any) -> None:
    (expected,) = await child.logprobs(None, [IDS])
    (row,) = await score_rows(base, LOSS, EncodedDataset((EncodedRow(tuple(IDS[:4]), tuple(IDS[4:])),), (), ""), 2)
    assert row.weight == 3.0
    assert row.value == pytest.approx(-sum(expected[-3:]), abs=1e-4)


async def test_adapter_and_base_rows_alternate(engines: dict[str, Any], base: ServedModel) -> None:
    engine = engines["gate-fp32"]
    engine.serve("a-1", "sha256:a", None)
    adapter = replace(base, model="a-1", revision="sha256:a")
    probes = [Probe("built-in", (1, 2, n)) for n in range(3, 8)]
    answers = await ask_probes(adapter, base, probes, concurrency=4)
    assert len(answers.adapter) == len(answers.base) == 10
    assert answers.adapter == pytest.approx(answers.base)
    models = [request["model"] for request in engine.requests]
    assert models.count("a-1") == models.count("tiny") == 5
    assert len(set(models[:4])) == 2, "they share the engine's batches"


async def test_busy_engine_is_asked_again(engines: dict[str, Any], base: ServedModel) -> None:
    engines["gate-fp32"].busy_answers = 2
    assert len(await base.prompt_logprobs(IDS)) == len(IDS) - 1
    assert len(engines["gate-fp32"].requests) == 3


async def test_numbers_that_are_not_finite_become_nan(engines: dict[str, Any], base: ServedModel) -> None:
    engines["gate-fp32"].serve("a-1", "sha256:a", None, says_nan=True)
    values = await replace(base, model="a-1", revision="sha256:a").prompt_logprobs(IDS)
    assert len(values) == len(IDS) - 1
    assert all(math.isnan(value) for value in values)


async def test_answer_of_another_revision_is_never_a_score(engines: dict[str, Any], base: ServedModel) -> None:
    engines["gate-fp32"].serve("a-1", BASE_REVISION, None)
    with pytest.raises(WrongAnswerer, match="base answered in place of sha256:a"):
        await replace(base, model="a-1", revision="sha256:a").prompt_logprobs(IDS)


async def test_engine_started_anew_is_noticed(engines: dict[str, Any], base: ServedModel) -> None:
    with pytest.raises(EngineFailed, match="started anew"):
        await replace(base, boot_id="another").prompt_logprobs(IDS)


async def test_dead_or_broken_engine_is_an_engine_failure(engines: dict[str, Any], base: ServedModel) -> None:
    engines["gate-fp32"].broken = True
    with pytest.raises(EngineFailed, match="500"):
        await base.choose_token(IDS, [1, 2])
    with pytest.raises(EngineFailed, match="broke while answering"):
        await replace(base, url="http://127.0.0.1:9").choose_token(IDS, [1, 2])


async def test_first_error_cancels_the_rest() -> None:
    finished: list[int] = []

    async def call(number: int) -> int:
        if number == 2:
            raise EngineFailed("gone")
        await asyncio.sleep(0 if number < 2 else 30)
        finished.append(number)
        return number

    with pytest.raises(EngineFailed, match="gone"):
        await gather_bounded([lambda n=n: call(n) for n in range(20)], concurrency=3)
    assert finished == [0, 1]
