"""Playing a step's episodes: prompts in groups, each sampled, answered by an environment or a reward, and scored.

Tokens are only ever appended: what the policy said is never tokenised again, so the trainer learns exactly what was
sampled.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from openmint.events import RolloutSpec
from openmint_trainer.rewards import Attempt, Reward
from openmint_trainer.rollouts.contract import Sample, Sampler, SampleRequest, check_samples, derived_seed
from openmint_trainer.rollouts.environments import Environment, GuardedEnvironment
from openmint_trainer.rollouts.prompts import Prompt, RolloutTokenizer, choose_prompts


@dataclass(slots=True, eq=False)
class Episode:
    """One whole sequence: which tokens the policy sampled, with what logprob (nats, 0 elsewhere), and its reward."""

    token_ids: list[int]
    is_sampled: list[bool]
    logprobs: list[float]
    reward: float = 0.0
    turns: int = 0
    is_done: bool = False

    def add(self, sample: Sample) -> None:
        """The policy said this."""
        self.token_ids += sample.token_ids
        self.is_sampled += [True] * len(sample.token_ids)
        self.logprobs += sample.logprobs
        self.turns += 1

    def observe(self, token_ids: Sequence[int]) -> None:
        """The environment said this."""
        self.token_ids += token_ids
        self.is_sampled += [False] * len(token_ids)
        self.logprobs += [0.0] * len(token_ids)


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """The episodes of step `number`, in groups, sampled from `digest`: the weights after `sampled_step` steps."""

    number: int
    sampled_step: int
    digest: str
    groups: tuple[tuple[Episode, ...], ...]


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """How one job samples. Exactly one of reward and environment is set."""

    spec: RolloutSpec
    prompts: Sequence[Prompt]
    prompts_per_step: int
    seed: int
    max_tokens: int
    tokenizer: RolloutTokenizer
    reward: Reward | None = None
    environment: Callable[[], Environment] | None = field(default=None)


async def collect(plan: RolloutPlan, sampler: Sampler, number: int, sampled_step: int) -> RolloutBatch:
    """Play the episodes of step `number` with one revision.

    Raises: WrongRevision, BadSample; RewardFailed, EnvironmentFailed naming the prompt; TimeoutError; what the sampler
        raises.
    """
    prompts = choose_prompts(plan.prompts, plan.seed, number, plan.prompts_per_step)
    async with asyncio.timeout(plan.spec.timeout_s):
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_play(plan, sampler, number, i, p)) for i, p in enumerate(prompts)]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from failed
    return RolloutBatch(number, sampled_step, sampler.digest, tuple(task.result() for task in tasks))


async def _play(plan: RolloutPlan, sampler: Sampler, number: int, index: int, prompt: Prompt) -> tuple[Episode, ...]:
    count = plan.spec.group_size
    episodes = [
        Episode(list(prompt.token_ids), [False] * len(prompt.token_ids), [0.0] * len(prompt.token_ids))
        for _ in range(count)
    ]
    seed = derived_seed(plan.seed, "rollout", number, index)
    if plan.environment is None:
        samples = await _sample(sampler, plan, [prompt.token_ids], count, seed)
        for episode, sample in zip(episodes, samples, strict=True):
            episode.add(sample)
        assert plan.reward is not None
        attempts = [Attempt(index, prompt.text, _text(plan, sample), prompt.row) for sample in samples]
        for episode, value in zip(episodes, await plan.reward(attempts), strict=True):
            episode.reward = value
        return tuple(episodes)
    worlds = [GuardedEnvironment(plan.environment, index) for _ in range(count)]
    openings = await asyncio.gather(*(w.reset(prompt.row, derived_seed(seed, i)) for i, w in enumerate(worlds)))
    for episode, text in zip(episodes, openings, strict=True):
        episode.observe(_tokens(plan, text))
    for turn in range(plan.spec.max_turns):
        going = [i for i, episode in enumerate(episodes) if _has_room(plan, episode)]
        if not going:
            break
        contexts = [tuple(episodes[i].token_ids) for i in going]
        samples = await _sample(sampler, plan, contexts, 1, derived_seed(seed, "turn", turn))
        turns = await asyncio.gather(*(worlds[i].step(_text(plan, s)) for i, s in zip(going, samples, strict=True)))
        for i, sample, answer in zip(going, samples, turns, strict=True):
            episodes[i].add(sample)
            episodes[i].reward += answer.reward
            episodes[i].is_done = answer.done
            if not answer.done:
                episodes[i].observe(_tokens(plan, answer.observation))
    return tuple(episodes)


async def _sample(
    sampler: Sampler, plan: RolloutPlan, prompts: Sequence[tuple[int, ...]], count: int, seed: int
) -> list[Sample]:
    request = SampleRequest(sampler.digest, tuple(prompts), count, plan.spec.max_new_tokens, seed)
    samples = await sampler.sample(request)
    check_samples(request, samples)
    return samples


def _has_room(plan: RolloutPlan, episode: Episode) -> bool:
    return not episode.is_done and len(episode.token_ids) + plan.spec.max_new_tokens <= plan.max_tokens


def _text(plan: RolloutPlan, sample: Sample) -> str:
    return plan.tokenizer.decode(sample.token_ids, skip_special_tokens=True)


def _tokens(plan: RolloutPlan, text: str) -> list[int]:
    return plan.tokenizer.encode(text, add_special_tokens=False) if text else []
