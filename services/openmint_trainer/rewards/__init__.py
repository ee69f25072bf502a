"""Rewards by name. A new one goes into its own file and into REWARDS."""

from collections.abc import Callable, Mapping, Sequence

from openmint.events import RewardSpec, SimpleReward
from openmint_trainer.rewards import built_in
from openmint_trainer.rewards.contract import Attempt, Reward, RewardFailed, checked_rewards
from openmint_trainer.rewards.outside import RewardEndpoint, endpoint, package

REWARDS: dict[str, Callable[[SimpleReward], Reward]] = {
    "exact": built_in.exact,
    "numeric": built_in.numeric,
    "format": built_in.format_,
    "length": built_in.length,
    "label": built_in.label,
    "package": package,
}


class Composite:
    """The weighted sum of other rewards."""

    def __init__(self, parts: Sequence[tuple[float, Reward]]) -> None:
        self._parts = parts

    async def __call__(self, attempts: Sequence[Attempt]) -> list[float]:
        """Raises: RewardFailed of the first part that fails."""
        totals = [0.0] * len(attempts)
        for weight, reward in self._parts:
            values = await reward(attempts)
            totals = [total + weight * value for total, value in zip(totals, values, strict=True)]
        return checked_rewards("composite", totals, attempts)


def make_reward(spec: RewardSpec, endpoints: Mapping[str, RewardEndpoint]) -> Reward:
    """The reward that a job names; `endpoints` are those that this trainer's operator allows.

    Raises: BadRequest naming the field that is wrong.
    """
    if spec.name == "composite":
        return Composite([(part.weight, _simple(part, endpoints)) for part in spec.parts])
    return _simple(spec, endpoints)


def _simple(spec: SimpleReward, endpoints: Mapping[str, RewardEndpoint]) -> Reward:
    return endpoint(spec, endpoints) if spec.name == "endpoint" else REWARDS[spec.name](spec)


__all__ = ["REWARDS", "Attempt", "Reward", "RewardEndpoint", "RewardFailed", "checked_rewards", "make_reward"]
