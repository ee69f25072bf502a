"""Policies that learn from rewards, together: they improve, repeat exactly, and fail alone."""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from openmint.errors import BadDataset, BadRequest
from openmint_trainer.checkpoints import read_checkpoint
from openmint_trainer.executor import Executor
from openmint_trainer.recipes.grpo import GapTooWide, GroupRelativePolicyOptimisation, StaleSamples
from openmint_trainer.rewards import RewardFailed, outside
from openmint_trainer.rollouts import environments
from openmint_trainer.rollouts.contract import (
    BadSample,
    RolloutOwner,
    Sample,
    Sampler,
    SampleRequest,
    Snapshot,
    WrongRevision,
)
from openmint_trainer.rollouts.desk import RolloutTimeout
from openmint_trainer.rollouts.environments import Turn
from openmint_trainer.rollouts.episodes import Episode, RolloutBatch

from .rollout_stand import RolloutStand, grpo_spec

MakeExecutor = Callable[..., Executor]

ROWS = [{"prompt": text, "answer": "7"} for text in ("a+b", "max", "min 3", "go", "x")]
DIGIT = {"name": "format", "pattern": r"\d.*"}
UPPER = {"name": "format", "pattern": r"[A-Z].*"}
LOWER = {"name": "format", "pattern": r"[a-z].*"}


@asynccontextmanager
async def stand(executor: Executor, **parts: Any) -> AsyncGenerator[RolloutStand]:
    made = RolloutStand(executor, **parts)
    try:
        yield made
    finally:
        await made.close()


def masters(stand: RolloutStand, key: str) -> torch.Tensor:
    slot = stand.training.runs[key].policy.slot
    return stand.executor.banks.bank_of(slot).row(slot).masters.clone()


async def test_three_policies_learn_three_rewards_together(make_executor: MakeExecutor) -> None:
    async with stand(make_executor()) as together:
        for seed, (key, reward) in enumerate({"digit": DIGIT, "upper": UPPER, "lower": LOWER}.items()):
            spec = grpo_spec(reward, steps=14, seed=seed, rollout={"group_size": 16}, optimizer={"learning_rate": 5e-2})
            await together.admit(key, spec, ROWS)
        await together.run()
        assert not together.failed
        for key in ("digit", "upper", "lower"):
            rewards = together.rewards(key)
            assert sum(rewards[-3:]) / 3 > sum(rewards[:2]) / 2 + 0.25, (key, rewards)
            for event in together.steps[key]:
                assert event.metrics.get("gap", 0.0) < 1e-4
                assert event.metrics["staleness"] == 0


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", "cispo"])
async def test_a_policy_in_company_equals_the_same_policy_alone(make_executor: MakeExecutor, loss: str) -> None:
    async def curve(with_company: bool) -> tuple[list[float], torch.Tensor]:
        async with stand(make_executor()) as made:
            if with_company:
                await made.admit("other", grpo_spec(UPPER, seed=5, steps=5), ROWS)
            await made.admit("one", grpo_spec(DIGIT, seed=3, rollout={"loss": loss}), ROWS)
            await made.run()
            return made.rewards("one") + made.losses("one"), masters(made, "one")

    alone, company = await curve(False), await curve(True)
    assert alone[0] == company[0]
    assert torch.equal(alone[1], company[1])


async def test_a_run_that_was_cut_off_repeats_its_step_and_ends_with_the_same_weights(
    make_executor: MakeExecutor, tmp_path: Path
) -> None:
    spec = grpo_spec(DIGIT, steps=5, seed=2)
    async with stand(make_executor()) as whole:
        await whole.admit("a", spec, ROWS)
        await whole.run(lambda event: whole.training.save("a", tmp_path / "a") and None if event.step == 2 else None)
        rewards, weights = whole.rewards("a"), masters(whole, "a")
    async with stand(make_executor()) as resumed:
        await resumed.admit("other", grpo_spec(UPPER, steps=1), ROWS)
        await resumed.admit("a", spec, ROWS, read_checkpoint(tmp_path / "a"))
        await resumed.run()
        assert resumed.rewards("a") == rewards[2:]
        assert torch.equal(masters(resumed, "a"), weights)


def sampled_steps(recipe: GroupRelativePolicyOptimisation, start: int = 0) -> dict[int, int]:
    return {number: step for step in range(start, recipe.steps) for number in recipe.due(step)}


def recipe(lag: int, start: int = 0, **rollout: Any) -> GroupRelativePolicyOptimisation:
    spec = grpo_spec(DIGIT, steps=9, training={"checkpoint_every_steps": 5, "revision_at_steps": [7]}, rollout=rollout)
    return GroupRelativePolicyOptimisation(
        spec, lag, start, lambda rows: [torch.full((len(row),), -1.0) for row in rows]
    )


def test_sampling_runs_ahead_but_never_past_a_checkpoint() -> None:
    fresh = sampled_steps(recipe(2, max_staleness=2))
    assert fresh == {1: 0, 2: 0, 3: 0, 4: 1, 5: 2, 6: 5, 7: 5, 8: 7, 9: 7}
    resumed = recipe(2, start=5, max_staleness=2)
    assert sampled_steps(resumed, 5) == {number: step for number, step in fresh.items() if number > 5}
    assert [resumed.is_exact_at(step) for step in (5, 6, 7)] == [True, False, True]
    assert sampled_steps(recipe(2, max_staleness=1)) == sampled_steps(recipe(1, max_staleness=1))
    assert sampled_steps(recipe(0)) == {number: number - 1 for number in range(1, 10)}


def episode(reward: float, logprob: float = -1.0) -> Episode:
    return Episode([1, 2, 3, 4], [False, True, False, True], [0.0, logprob, 0.0, logprob], reward)


def batch(*groups: Sequence[Episode], sampled_step: int = 0, number: int = 1) -> RolloutBatch:
    return RolloutBatch(number, sampled_step, "sha256:s", tuple(tuple(group) for group in groups))


def test_groups_whose_rewards_are_equal_are_skipped_and_counted() -> None:
    made = recipe(0, advantage="centred")
    made.deliver(batch([episode(1.0), episode(1.0)], [episode(1.0), episode(0.0)]))
    rows = made.next_batch(0)
    assert [row.advantages.tolist() for row in rows] == [[0.5, 0.0, 0.5], [-0.5, 0.0, -0.5]]  # pyright: ignore
    assert [row.weights.tolist() for row in rows] == [[0.25, 0.0, 0.25]] * 2
    measured = made.close_step(0, lambda: "sha256:t")
    assert measured == {"reward": 0.75, "staleness": 0.0, "skipped_groups": 1.0, "sampled_tokens": 8.0}
    made.deliver(batch([episode(1.0), episode(1.0)], number=2))
    assert made.next_batch(1) == []


def test_the_penalty_for_leaving_the_base_moves_advantages_by_the_log_ratio() -> None:
    made = recipe(0, advantage="centred", kl_weight=0.1)
    made.deliver(batch([episode(1.0, -0.5), episode(1.0, -1.5)]))
    rows = made.next_batch(0)
    assert [row.advantages.tolist() for row in rows] == [  # pyright: ignore
        pytest.approx([-0.05, 0.0, -0.05]),
        pytest.approx([0.05, 0.0, 0.05]),
    ]
    assert made.close_step(0, lambda: "")["kl"] == 0.0


def test_samples_older_than_allowed_are_refused() -> None:
    made = recipe(1, max_staleness=1)
    made.deliver(batch([episode(1.0), episode(0.0)], sampled_step=0, number=3))
    with pytest.raises(StaleSamples, match=r"sha256:s are 2 optimizer steps old; rollout.max_staleness is 1"):
        made.next_batch(2)


def test_what_a_job_asks_for_is_checked_before_it_trains(make_executor: MakeExecutor) -> None:
    with pytest.raises(BadRequest, match="advantage 'luck' is unknown") as refused:
        recipe(0, advantage="luck")
    assert refused.value.field == "rollout.advantage"


def test_clips_and_penalties_become_the_losss_settings_and_unset_ones_its_defaults() -> None:
    assert recipe(0, loss="gspo").config == {
        "clip_low_threshold": 1 - 3e-4,
        "clip_high_threshold": 1 + 4e-4,
        "kl_coef": 0.0,
    }
    assert recipe(0, clip_low=0.5, kl_coef=0.1).config == {
        "clip_low_threshold": 0.5,
        "clip_high_threshold": 1.2,
        "kl_coef": 0.1,
    }
    assert recipe(0, loss="dro", beta=0.3).config == {"beta": 0.3, "kl_coef": 0.0}
    with pytest.raises(BadRequest, match="loss importance_sampling has no clip_low") as refused:
        recipe(0, loss="importance_sampling", clip_low=0.5)
    assert refused.value.field == "rollout.clip_low"


def test_a_loss_beside_the_rollouts_is_refused() -> None:
    with pytest.raises(ValidationError, match="takes its loss and the loss's settings from rollout"):
        grpo_spec(DIGIT, loss={"name": "ppo"})


async def test_the_losss_own_penalty_holds_a_policy_to_the_base(make_executor: MakeExecutor) -> None:
    async def last(kl_coef: float) -> tuple[float, float]:
        async with stand(make_executor()) as made:
            await made.admit("a", grpo_spec(DIGIT, steps=6, rollout={"kl_coef": kl_coef, "kl_weight": 1e-9}), ROWS)
            await made.run()
            assert not made.failed
            told = made.steps["a"][-1].metrics
            return told["kl"], told.get("reference_kl", 0.0)

    free, held = await last(0.0), await last(20.0)
    assert free[1] == 0.0
    assert held[1] > 0
    assert held[0] < free[0] / 2


async def test_prompts_without_room_for_samples_are_refused(make_executor: MakeExecutor) -> None:
    async with stand(make_executor()) as made:
        with pytest.raises(BadDataset, match=r"row 2 has 3 tokens, which with rollout.max_new_tokens = 511"):
            spec = grpo_spec(DIGIT, rollout={"max_new_tokens": 511}, training={"max_tokens_per_row": 513})
            await made.admit("a", spec, [{"prompt": "a", "answer": ""}, {"prompt": "abc", "answer": ""}])
        with pytest.raises(BadDataset, match="row 1 has no prompt"):
            await made.admit("a", grpo_spec(DIGIT), [{"text": "a"}])


Change = Callable[[Sample], Sample]


@dataclass
class Faulty:
    """The in-process sampler with a fault: what it answers is changed, or comes never."""

    inner: Any = None
    change: Change = field(default=lambda sample: sample)
    only: str = "sick"
    overlaps: bool = False

    async def snapshot(self, owner: RolloutOwner, step: int) -> Snapshot:
        return await self.inner.snapshot(owner, step)

    @asynccontextmanager
    async def lease(self, snapshot: Snapshot) -> AsyncGenerator[Sampler]:
        async with self.inner.lease(snapshot) as sampler:
            yield self._Changed(sampler.digest, sampler, self.change) if snapshot.owner.key == self.only else sampler

    @dataclass
    class _Changed:
        digest: str
        inner: Sampler
        change: Change

        async def sample(self, request: SampleRequest) -> list[Sample]:
            return [self.change(sample) for sample in await self.inner.sample(request)]


async def losses_beside(executor: Executor, spec: Any, change: Change | None = None) -> tuple[Any, list[float]]:
    """The error of a policy named sick, and the losses of a well one beside it."""
    async with stand(executor) as made:
        if change is not None:
            made.samplers = Faulty(made.in_process, change)
        await made.admit("well", grpo_spec(DIGIT, seed=1), ROWS)
        if spec is not None:
            await made.admit("sick", spec, ROWS)
        await made.run()
        return made.failed.get("sick"), made.losses("well")


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (lambda s: replace(s, digest="sha256:old"), WrongRevision, "was made by sha256:old, not by sha256:"),
        (lambda s: replace(s, token_ids=s.token_ids * 500_000), BadSample, r"has 1000000 tokens; 1 to 2 were asked"),
        (lambda s: replace(s, logprobs=(float("nan"),) * len(s.token_ids)), BadSample, "logprob that is not finite"),
        (lambda s: replace(s, logprobs=()), BadSample, "has 0 logprobs for"),
        (lambda s: replace(s, logprobs=tuple(v - 2.0 for v in s.logprobs)), GapTooWide, "above rollout.max_gap = 0.5"),
    ],
    ids=["old revision", "too long", "nan", "no logprobs", "gap"],
)
async def test_a_sampler_at_fault_fails_its_own_job_within_one_step(
    make_executor: MakeExecutor, change: Change, kind: type[Exception], said: str
) -> None:
    _, expected = await losses_beside(make_executor(), None)
    error, losses = await losses_beside(make_executor(), grpo_spec(UPPER, seed=2), change)
    assert isinstance(error, kind)
    assert "step 1" in str(error.detail)  # type: ignore[attr-defined]
    with pytest.raises(kind, match=said):
        raise error
    assert losses == expected


async def test_the_gap_alarm_names_both_sides(make_executor: MakeExecutor) -> None:
    error, _ = await losses_beside(
        make_executor(),
        grpo_spec(UPPER, seed=2),
        lambda s: replace(s, logprobs=tuple(v - 2.0 for v in s.logprobs)),
    )
    assert isinstance(error, GapTooWide)
    assert error.detail.count("sha256:") == 2
    assert "2 nats" in error.detail


async def test_a_reward_that_hangs_or_is_no_number_fails_its_own_job_and_no_loss_changes(
    make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Entry:
        def __init__(self, name: str, function: object) -> None:
            self.name, self._function = name, function

        def load(self) -> object:
            return self._function

    offered = [Entry("hangs", lambda asked: time.sleep(30)), Entry("nan", lambda asked: [float("nan")] * len(asked))]
    monkeypatch.setattr(outside, "entry_points", lambda group: offered)
    _, expected = await losses_beside(make_executor(), None)
    for entry, said in (("hangs", "did not answer within 0.3 s for prompt"), ("nan", "gave nan for prompt")):
        spec = grpo_spec({"name": "package", "entry": entry, "timeout_s": 0.3})
        error, losses = await losses_beside(make_executor(), spec)
        assert isinstance(error, RewardFailed)
        assert said in error.detail
        assert losses == expected


async def test_rollouts_that_never_come_end_their_own_job(make_executor: MakeExecutor, monkeypatch: Any) -> None:
    class Entry:
        name = "slow"

        def load(self) -> object:
            return lambda asked: time.sleep(30)

    monkeypatch.setattr(outside, "entry_points", lambda group: [Entry()])
    spec = grpo_spec({"name": "package", "entry": "slow", "timeout_s": 60}, rollout={"timeout_s": 0.5})
    error, losses = await losses_beside(make_executor(), spec)
    assert isinstance(error, RolloutTimeout)
    assert "step 1 did not come within 0.5 s" in error.detail
    assert len(losses) == 4


class CountUp:
    """Three turns: the row's text, then one that ends; a digit is worth a third each time."""

    def reset(self, row: Any, seed: int) -> str:
        self.turns = 0
        return row.get("opening", "")

    def step(self, completion: str) -> Turn:
        self.turns += 1
        return Turn(f"<{self.turns}>", float(completion[:1].isdigit()) / 3, self.turns == 3)


class Breaks(CountUp):
    def step(self, completion: str) -> Turn:
        raise KeyError("s3cret")


def offer_environment(monkeypatch: pytest.MonkeyPatch, made: object) -> None:
    monkeypatch.setattr(environments, "find_entry", lambda group, name, field: made)


async def test_a_policy_learns_in_an_environment_of_three_turns(
    make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_environment(monkeypatch, CountUp)
    seen: list[RolloutBatch] = []
    async with stand(make_executor()) as made:
        deliver = made.training.deliver
        monkeypatch.setattr(made.training, "deliver", lambda key, batch: (seen.append(batch), deliver(key, batch)))
        spec = grpo_spec(None, steps=12, rollout={"environment": "count", "max_turns": 5, "group_size": 12})
        await made.admit("a", spec, [{"prompt": "go", "answer": "", "opening": ":"}])
        await made.run()
        assert not made.failed
        rewards = made.rewards("a")
    assert sum(rewards[-2:]) > sum(rewards[:2]) + 0.4, rewards
    first = seen[0].groups[0][0]
    assert first.turns == 3
    text = "".join(
        "." if sampled else chr(t + 32) for t, sampled in zip(first.token_ids, first.is_sampled, strict=True)
    )
    assert text.replace(".", "") == "go:<1><2>"


async def test_an_environment_that_breaks_fails_its_own_job(
    make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_environment(monkeypatch, Breaks)
    spec = grpo_spec(None, rollout={"environment": "count", "max_turns": 5})
    error, losses = await losses_beside(make_executor(), spec)
    assert isinstance(error, environments.EnvironmentFailed)
    assert "raised KeyError for prompt" in error.detail
    assert "s3cret" not in error.detail
    assert len(losses) == 4
