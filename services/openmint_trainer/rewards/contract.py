"""What every reward takes and gives, and how one fails: by name, for its own job, and without any secret."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import JsonValue

from openmint.errors import CallerMistake


class RewardFailed(CallerMistake):
    """A reward could not be had for a sample."""

    code = "reward_failed"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One sampled completion. `prompt_index` counts the prompts of a step from 0; `row` is the dataset's row."""

    prompt_index: int
    prompt: str
    completion: str
    row: Mapping[str, JsonValue]

    @property
    def answer(self) -> str:
        """What the row says is right; empty when it says nothing."""
        found = self.row.get("answer", self.row.get("completion", ""))
        return found if isinstance(found, str) else ""


class Reward(Protocol):
    """A reward by name in `openmint_trainer.rewards.REWARDS`, or one from outside."""

    async def __call__(self, attempts: Sequence[Attempt]) -> list[float]:
        """One finite number per attempt, higher is better. Raises: RewardFailed naming kind and prompt."""
        ...


def checked_rewards(kind: str, values: object, attempts: Sequence[Attempt]) -> list[float]:
    """The values as numbers.

    Raises: RewardFailed naming the prompt whose reward is missing, no number, or not finite.
    """
    if not isinstance(values, Sequence) or isinstance(values, str | bytes) or len(values) != len(attempts):
        raise RewardFailed(
            f"reward {kind} gave {_shown(values)} for {len(attempts)} completions from prompt "
            f"{attempts[0].prompt_index}, not one number for each",
            field="reward",
        )
    found: list[float] = []
    for value, attempt in zip(values, attempts, strict=True):
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise RewardFailed(
                f"reward {kind} gave {_shown(value)} for prompt {attempt.prompt_index}, which is no finite number",
                field="reward",
            )
        found.append(float(value))
    return found


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _shown(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return f"{len(value)} values"
    return repr(value)[:40] if isinstance(value, int | float) else f"a {type(value).__name__}"
