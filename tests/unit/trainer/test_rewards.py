"""What completions are worth, and how a reward fails: by name, soon, and without a secret."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr, ValidationError

from openmint.errors import BadRequest
from openmint.events import RewardSpec
from openmint_trainer.rewards import Attempt, RewardEndpoint, RewardFailed, make_reward, outside


def attempts(*completions: str, answer: str = "12") -> list[Attempt]:
    return [Attempt(3 + i, "q", text, {"prompt": "q", "answer": answer}) for i, text in enumerate(completions)]


async def judged(spec: dict[str, Any], *completions: str, answer: str = "12") -> list[float]:
    return await make_reward(RewardSpec.model_validate(spec), {})(attempts(*completions, answer=answer))


async def test_built_in_rewards_judge_as_they_say() -> None:
    assert await judged({"name": "exact"}, " 12\n", "12.", "") == [1, 0, 0]
    assert await judged({"name": "numeric"}, "it is 12.0", "12 or 13", "-12", "1,2e1", "none") == [1, 0, 0, 0, 0]
    assert await judged({"name": "numeric"}, "1,200", answer="so: 1200") == [1]
    assert await judged({"name": "numeric", "tolerance": 0.5}, "12.4", "12.6") == [1, 0]
    assert await judged({"name": "format", "pattern": r"\d+."}, "12\n", "x12.", "12") == [1, 0, 1]
    assert await judged({"name": "length", "min_characters": 2, "max_characters": 3}, "a", "ab", "abc", "abcd") == [
        0, 1, 1, 0,
    ]  # fmt: skip
    labels = {"name": "label", "labels": ["good", "goodish"]}
    assert await judged(labels, " good one", "goodish", "bad", answer="good") == [1, 0, 0]


async def test_a_composite_is_the_weighted_sum_of_its_parts() -> None:
    parts = [{"name": "format", "pattern": r"\d+", "weight": 0.2}, {"name": "exact", "weight": 0.8}]
    assert await judged({"name": "composite", "parts": parts}, "12", "13", "x") == pytest.approx([1.0, 0.2, 0.0])


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "format"},
        {"name": "label", "labels": ["a", "a"]},
        {"name": "package"},
        {"name": "composite"},
        {"name": "exact", "parts": [{"name": "exact"}]},
        {"name": "composite", "parts": [{"name": "composite"}]},
        {"name": "length", "min_characters": 3, "max_characters": 2},
        {"name": "unheard"},
    ],
)
def test_a_reward_that_lacks_what_it_reads_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RewardSpec.model_validate(spec)


async def test_a_pattern_that_is_none_is_refused_and_one_that_never_ends_fails_by_prompt() -> None:
    with pytest.raises(BadRequest, match="can't be read") as refused:
        await judged({"name": "format", "pattern": "("}, "x")
    assert refused.value.field == "reward.pattern"
    with pytest.raises(RewardFailed, match="longer than 1 s on a completion of prompt 3"):
        await judged({"name": "format", "pattern": r"(a|aa)+\d"}, "a" * 60)


def offer(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    """Stands for packages that are installed."""
    for name, function in functions.items():
        globals()[f"offered_{name}"] = function
    entries = [EntryPoint(name, f"{__name__}:offered_{name}", outside.GROUP) for name in functions]
    monkeypatch.setattr(EntryPoint, "load", lambda self: globals()[f"offered_{self.name}"])
    monkeypatch.setattr(outside, "entry_points", lambda group: entries)


async def test_a_packages_reward_gets_prompt_completion_and_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(asked: Sequence[dict[str, Any]]) -> list[float]:
        return [len(item["completion"]) / 2 if item["row"]["answer"] == "12" else 0 for item in asked]

    offer(monkeypatch, half=half)
    assert await judged({"name": "package", "entry": "half"}, "a", "bb") == [0.5, 1.0]
    with pytest.raises(BadRequest, match="known are: half"):
        await judged({"name": "package", "entry": "other"}, "a")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([float("nan"), 1.0], "gave nan for prompt 3"),
        ([1.0, float("inf")], "gave inf for prompt 4"),
        (["1", 1.0], "gave a str for prompt 3"),
        ([True, 1.0], "gave True for prompt 3"),
        ([10**400, 1.0], "for prompt 3, which is no finite number"),
        ([1.0], "gave 1 values for 2 completions from prompt 3"),
        (None, "gave a NoneType"),
    ],
)
async def test_what_is_no_finite_number_fails_and_names_the_prompt(
    monkeypatch: pytest.MonkeyPatch, answer: object, said: str
) -> None:
    offer(monkeypatch, odd=lambda asked: answer)
    with pytest.raises(RewardFailed, match=said) as failed:
        await judged({"name": "package", "entry": "odd"}, "a", "b")
    assert failed.value.field == "reward"


async def test_a_package_that_raises_or_hangs_fails_soon_and_its_words_are_not_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def raises(asked: object) -> list[float]:
        raise KeyError("s3cret")

    def leaves(asked: object) -> list[float]:
        raise SystemExit

    offer(monkeypatch, raises=raises, leaves=leaves, hangs=lambda asked: time.sleep(20))
    with pytest.raises(RewardFailed, match="package raises raised KeyError for prompt 3") as failed:
        await judged({"name": "package", "entry": "raises"}, "a")
    assert "s3cret" not in failed.value.detail
    with pytest.raises(RewardFailed, match="package leaves raised RuntimeError"):
        await judged({"name": "package", "entry": "leaves"}, "a")
    began = time.monotonic()
    with pytest.raises(RewardFailed, match=r"package hangs did not answer within 0\.2 s for prompt 3"):
        await judged({"name": "package", "entry": "hangs", "timeout_s": 0.2}, "a")
    assert time.monotonic() - began < 5


@pytest.fixture
async def judge_url() -> AsyncIterator[str]:
    """A judge that wants a key; the path says how it answers."""

    async def judge(request: web.Request) -> web.StreamResponse:
        kind = request.match_info["kind"]
        if kind == "hang":
            await asyncio.sleep(20)
        if request.headers.get("authorization") != "Bearer s3cret" or kind == "refuse":
            return web.json_response({"error": "s3cret"}, status=403)
        if kind == "redirect":
            raise web.HTTPFound("/good")
        if kind == "text":
            return web.Response(text="no JSON")
        asked = (await request.json())["attempts"]
        return web.json_response({"rewards": [float(item["completion"] == item["row"]["answer"]) for item in asked]})

    app = web.Application()
    app.router.add_post("/{kind}", judge)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_an_endpoint_is_asked_with_its_key_and_its_failures_name_neither_url_nor_key(judge_url: str) -> None:
    allowed = {
        kind: RewardEndpoint(url=f"{judge_url}/{kind}", key=SecretStr("s3cret"))
        for kind in ("good", "refuse", "hang", "text", "redirect")
    }
    allowed["gone"] = RewardEndpoint(url="http://127.0.0.1:9/x", key=SecretStr("s3cret"))

    async def ask(kind: str) -> list[float]:
        spec = RewardSpec.model_validate({"name": "endpoint", "entry": kind, "timeout_s": 0.5})
        return await make_reward(spec, allowed)(attempts("12", "13"))

    assert await ask("good") == [1.0, 0.0]
    for kind, said in {
        "refuse": "answered 403",
        "hang": "did not answer within",
        "text": "could not be asked",
        "redirect": "answered 302",
        "gone": "could not be asked",
    }.items():
        with pytest.raises(RewardFailed, match=f"endpoint {kind} {said}.* for prompt 3") as failed:
            await ask(kind)
        assert "s3cret" not in failed.value.detail
        assert "127.0.0.1" not in failed.value.detail
    with pytest.raises(BadRequest, match="'http://evil' is not allowed here; known are: gone, good"):
        await ask("http://evil")
