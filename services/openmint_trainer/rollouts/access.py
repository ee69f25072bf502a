"""What a trainer can sample with, and what it makes of a job's request."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from openmint.clock import Clock, WallClock
from openmint.events import RolloutSpec, TrainRequested
from openmint_trainer.data import JsonRow
from openmint_trainer.rewards import RewardEndpoint, make_reward
from openmint_trainer.rollouts.contract import Samplers
from openmint_trainer.rollouts.environments import find_environment
from openmint_trainer.rollouts.episodes import RolloutPlan
from openmint_trainer.rollouts.prompts import RolloutTokenizer, tokenise_prompts

ENGINE_PATIENCE_S = 4.0
"""An engine tells of itself every second; a trainer that has just started must hear it before it samples by itself."""


@dataclass(frozen=True, slots=True)
class RolloutAccess:
    """The places to sample at. `in_process` is for where no engine is; with `engines` None it is always taken."""

    in_process: Samplers
    engines: Samplers | None = None
    has_engine: Callable[[], bool] = lambda: False
    max_in_flight: int = 16
    endpoints: Mapping[str, RewardEndpoint] = field(default_factory=dict[str, RewardEndpoint])
    clock: Clock = field(default_factory=WallClock)

    async def choose(self) -> Samplers:
        """Engines where there are any; decided once per claim of a job."""
        if self.engines is None:
            return self.in_process
        ends_s = self.clock.monotonic_s() + ENGINE_PATIENCE_S
        while not self.has_engine():
            if self.clock.monotonic_s() > ends_s:
                return self.in_process
            await self.clock.sleep(0.2)
        return self.engines


def make_plan(
    spec: TrainRequested,
    rows: Sequence[JsonRow],
    tokenizer: RolloutTokenizer,
    budget_tokens: int,
    endpoints: Mapping[str, RewardEndpoint],
) -> RolloutPlan:
    """How a job of recipe grpo samples. `budget_tokens` is the most that a row may have here.

    Raises: BadRequest, BadDataset naming the field.
    """
    rollout = spec.rollout or RolloutSpec()
    most = min(spec.training.max_tokens_per_row, budget_tokens)
    return RolloutPlan(
        spec=rollout,
        prompts=tokenise_prompts(rows, tokenizer, rollout.max_new_tokens, most),
        prompts_per_step=spec.training.batch_rows,
        seed=spec.training.seed,
        max_tokens=most,
        tokenizer=tokenizer,
        environment=find_environment(rollout.environment) if rollout.environment else None,
        reward=make_reward(spec.reward, endpoints) if spec.reward and not rollout.environment else None,
    )
