"""Trains policies by rollouts without bus or catalogue: the desk, the in-process sampler and a loop of a few lines."""

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from pydantic import JsonValue

from openmint.events import TrainRequested
from openmint_trainer.executor import Executor
from openmint_trainer.mixed_training import MixedTraining, RunFailed, StepFinished
from openmint_trainer.rewards import RewardEndpoint
from openmint_trainer.rollouts.access import make_plan
from openmint_trainer.rollouts.contract import RolloutOwner, Samplers
from openmint_trainer.rollouts.decoding import MixedDecoder
from openmint_trainer.rollouts.desk import RolloutDesk, RolloutReady
from openmint_trainer.rollouts.in_process import InProcessSamplers
from openmint_trainer.training_thread import TrainingThread


class CharacterTokenizer:
    """The 95 printable characters of ASCII, one token each; 95 ends a text."""

    eos_token_id: int | None = 95
    chat_template: str | None = None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [ord(character) - 32 for character in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return "".join(chr(token + 32) for token in token_ids if token != 95)

    def apply_chat_template(
        self, conversation: Sequence[Mapping[str, JsonValue]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        raise NotImplementedError


def grpo_spec(reward: dict[str, Any] | None, steps: int = 4, seed: int = 0, **sections: Any) -> TrainRequested:
    body: dict[str, Any] = {
        "policy": "p",
        "base": "tiny",
        "recipe": "grpo",
        "dataset": {"digest": "sha256:" + "0" * 64},
        "training": {"steps": steps, "batch_rows": 3, "seed": seed} | sections.pop("training", {}),
        "optimizer": {"learning_rate": 2e-2} | sections.pop("optimizer", {}),
        "rollout": {"group_size": 8, "max_new_tokens": 2} | sections.pop("rollout", {}),
    }
    return TrainRequested.model_validate(body | ({"reward": reward} if reward else {}) | sections)


@dataclass
class RolloutStand:
    """One resident base, its training and its sampler."""

    executor: Executor
    samplers: Samplers | None = None
    endpoints: dict[str, RewardEndpoint] = field(default_factory=dict)
    steps: dict[Hashable, list[StepFinished]] = field(default_factory=dict)
    failed: dict[Hashable, Exception] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.training = MixedTraining(self.executor, budget_tokens=512)
        self.thread = TrainingThread()
        self.changed = asyncio.Event()
        self.desk = RolloutDesk(16, self.changed.set)
        decoder = MixedDecoder(self.executor.base, CharacterTokenizer.eos_token_id, 512)
        self.in_process = InProcessSamplers(decoder, self.training, self.thread)
        self.samplers = self.samplers or self.in_process

    async def admit(
        self, key: str, spec: TrainRequested, rows: Sequence[dict[str, Any]], checkpoint: Any = None
    ) -> None:
        """Let a job of rollouts in."""
        assert self.samplers is not None
        plan = make_plan(spec, rows, CharacterTokenizer(), 512, self.endpoints)
        lag = plan.spec.max_staleness if self.samplers.overlaps else 0
        run = await self.thread.run(lambda: self.training.admit(key, key, spec, [], checkpoint, lag))
        self.desk.enter(RolloutOwner(key, key, "p", UUID(int=len(self.training.runs)), 1), plan, self.samplers)
        assert run.rollouts is not None
        await self.desk.begin(key, run.step, run.rollouts.due(run.step))

    async def run(self, after: Callable[[StepFinished], None] = lambda _: None) -> None:
        """Until every run is done or has failed."""
        async with asyncio.timeout(120):
            while any(not run.is_done for run in self.training.runs.values()):
                self.changed.clear()
                for outcome in self.desk.take():
                    if isinstance(outcome, RolloutReady):
                        self.training.deliver(outcome.key, outcome.batch)
                    else:
                        await self.fail(outcome.key, outcome.error)
                if not self.training.has_work:
                    if not self.desk.has_out:
                        return
                    async with asyncio.timeout(60):
                        await self.changed.wait()
                    continue
                for event in await self.thread.run(self.training.advance):
                    if isinstance(event, RunFailed):
                        await self.fail(event.key, event.error)
                        continue
                    self.steps.setdefault(event.key, []).append(event)
                    after(event)
                    run = self.training.runs[event.key]
                    if run.rollouts is not None and not run.is_done:
                        await self.desk.begin(event.key, run.step, run.rollouts.due(run.step))

    async def fail(self, key: Hashable, error: Exception) -> None:
        """A run is out; the others go on."""
        self.failed[key] = error
        await self.desk.leave(key)
        await self.thread.run(lambda: self.training.drop(key))

    async def close(self) -> None:
        await self.desk.close()
        await self.in_process.close()
        self.thread.close()

    def rewards(self, key: str) -> list[float]:
        return [event.metrics["reward"] for event in self.steps[key]]

    def losses(self, key: str) -> list[float]:
        return [event.loss for event in self.steps[key]]
