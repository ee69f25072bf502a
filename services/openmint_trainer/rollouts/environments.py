"""Environments of several turns, as installed packages offer them.

An entry point of group `openmint.environments` names a class or function that is called without arguments, once per
episode. Its methods may block; they run in a thread of their own and are left behind when they take too long.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from pydantic import JsonValue

from openmint.errors import BadRequest, CallerMistake
from openmint_trainer.rewards.outside import call_abandonable, find_entry

GROUP = "openmint.environments"

CALL_TIMEOUT_S = 60.0
"""Of one reset or step."""


class EnvironmentFailed(CallerMistake):
    """An environment could not go on."""

    code = "environment_failed"


@dataclass(frozen=True, slots=True)
class Turn:
    """What an environment says to a completion: the text that follows it, a reward for it, and whether that was all."""

    observation: str
    reward: float
    done: bool


class Environment(Protocol):
    """One episode's world."""

    def reset(self, row: Mapping[str, JsonValue], seed: int) -> str:
        """Text to put after the row's prompt before the first turn; usually none."""
        ...

    def step(self, completion: str) -> Turn:
        """React to what the policy said."""
        ...


def find_environment(name: str) -> Callable[[], Environment]:
    """What an installed package offers under a name. Raises: BadRequest."""
    found = find_entry(GROUP, name, "rollout.environment")
    if not callable(found):
        raise BadRequest(f"{name} of {GROUP} can't be called", field="rollout.environment")
    return cast("Callable[[], Environment]", found)


class GuardedEnvironment:
    """An environment whose every call ends: with an answer of the right form, or as this job's own failure."""

    def __init__(self, make: Callable[[], Environment], prompt_index: int, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._make = make
        self._prompt_index = prompt_index
        self._timeout_s = timeout_s
        self._inner: Environment | None = None

    async def reset(self, row: Mapping[str, JsonValue], seed: int) -> str:
        """Raises: EnvironmentFailed naming the prompt."""

        def begin() -> str:
            self._inner = self._make()
            return self._inner.reset(row, seed)

        text = await self._call(begin)
        if not isinstance(text, str):
            raise self._failed(f"gave a {type(text).__name__} at reset, not a text")
        return text

    async def step(self, completion: str) -> Turn:
        """Raises: EnvironmentFailed naming the prompt."""
        inner = self._inner
        assert inner is not None
        turn = await self._call(lambda: inner.step(completion))
        reward = getattr(turn, "reward", None)
        if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
            raise self._failed("gave a reward that is no finite number")
        observation = getattr(turn, "observation", None)
        if not isinstance(observation, str):
            raise self._failed("gave an observation that is no text")
        return Turn(observation, float(reward), bool(getattr(turn, "done", False)))

    async def _call(self, call: Callable[[], object]) -> object:
        try:
            return await call_abandonable(call, self._timeout_s)
        except TimeoutError as error:
            raise self._failed(f"did not answer within {self._timeout_s:g} s") from error
        except Exception as error:
            raise self._failed(f"raised {type(error).__name__}") from error

    def _failed(self, what: str) -> EnvironmentFailed:
        return EnvironmentFailed(f"the environment {what} for prompt {self._prompt_index}", field="rollout.environment")
