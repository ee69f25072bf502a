"""Rewards from outside: an installed package's function, or an HTTP endpoint that the trainer's operator allows.

Neither is trusted to answer: a call that hangs is left behind after its timeout and fails its own job.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import TypeVar, cast

import httpx
import orjson
from pydantic import BaseModel, ConfigDict, Field, JsonValue, SecretStr

from openmint.errors import BadRequest
from openmint.events import SimpleReward
from openmint_trainer.rewards.contract import Attempt, Reward, RewardFailed, checked_rewards

GROUP = "openmint.rewards"
MAX_ANSWER_BYTES = 4 << 20

T = TypeVar("T")
PackageReward = Callable[[Sequence[Mapping[str, JsonValue]]], Sequence[float]]


class RewardEndpoint(BaseModel):
    """An endpoint that jobs may name. Jobs never give a URL, so none can have this machine call one of its choice."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(pattern=r"^https?://")
    key: SecretStr = SecretStr("")
    """Sent as a bearer token; empty: none."""


async def call_abandonable(call: Callable[[], T], timeout_s: float) -> T:
    """A blocking call in a daemon thread of its own, left behind when it takes too long.

    Raises: TimeoutError, or what the call raised.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(cast(T, value))

    def work() -> None:
        value, error = None, None
        try:
            value = call()
        except Exception as raised:
            error = raised
        except BaseException as raised:  # sys.exit in a package must not end in silence
            error = RuntimeError(f"{type(raised).__name__} was raised")
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=work, name="reward", daemon=True).start()
    async with asyncio.timeout(timeout_s):
        return await answer


def find_entry(group: str, name: str, field: str) -> object:
    """What an installed package offers under a name. Raises: BadRequest naming what there is, or why it won't load."""
    offered = {entry.name: entry for entry in entry_points(group=group)}
    if name not in offered:
        known = ", ".join(sorted(offered)) or "none"
        raise BadRequest(f"no installed package offers {name[:80]!r} in {group}; known are: {known}", field=field)
    try:
        return offered[name].load()
    except Exception as error:
        raise BadRequest(f"{name} of {group} can't be loaded: {type(error).__name__}", field=field) from error


class PackageCall:
    """A `Reward` by a function of an installed package: a list of {prompt, completion, row} to a list of numbers."""

    def __init__(self, name: str, function: PackageReward, timeout_s: float) -> None:
        self._kind = f"package {name}"
        self._function = function
        self._timeout_s = timeout_s

    async def __call__(self, attempts: Sequence[Attempt]) -> list[float]:
        """Raises: RewardFailed; the text of a package's own error stays in its cause."""
        asked = _as_plain(attempts)
        first = attempts[0].prompt_index
        try:
            values = await call_abandonable(lambda: self._function(asked), self._timeout_s)
        except TimeoutError as error:
            raise _too_late(self._kind, self._timeout_s, first) from error
        except Exception as error:
            raise RewardFailed(
                f"reward {self._kind} raised {type(error).__name__} for prompt {first}", field="reward"
            ) from error
        return checked_rewards(self._kind, values, attempts)


class EndpointCall:
    """A `Reward` by HTTP: POST {attempts: [{prompt, completion, row}]}, answered by {rewards: [number, …]}."""

    def __init__(self, name: str, endpoint: RewardEndpoint, timeout_s: float) -> None:
        self._kind = f"endpoint {name}"
        self._endpoint = endpoint
        self._timeout_s = timeout_s

    async def __call__(self, attempts: Sequence[Attempt]) -> list[float]:
        """Raises: RewardFailed naming kind and prompt, never the URL or its key."""
        first = attempts[0].prompt_index
        try:
            async with asyncio.timeout(self._timeout_s):
                body = await self._ask({"attempts": _as_plain(attempts)}, first)
        except TimeoutError as error:
            raise _too_late(self._kind, self._timeout_s, first) from error
        except (httpx.HTTPError, ValueError) as error:
            raise RewardFailed(
                f"reward {self._kind} could not be asked for prompt {first}: {type(error).__name__}", field="reward"
            ) from error
        return checked_rewards(self._kind, body.get("rewards") if isinstance(body, dict) else None, attempts)

    async def _ask(self, request: Mapping[str, object], first: int) -> object:
        key = self._endpoint.key.get_secret_value()
        headers = {"authorization": f"Bearer {key}"} if key else {}
        async with (
            httpx.AsyncClient(timeout=self._timeout_s, trust_env=False, follow_redirects=False) as http,
            http.stream("POST", self._endpoint.url, json=request, headers=headers) as response,
        ):
            if response.status_code != 200:
                raise RewardFailed(
                    f"reward {self._kind} answered {response.status_code} for prompt {first}", field="reward"
                )
            data = bytearray()
            async for chunk in response.aiter_bytes():
                data += chunk
                if len(data) > MAX_ANSWER_BYTES:
                    raise RewardFailed(
                        f"reward {self._kind} answered with more than {MAX_ANSWER_BYTES} bytes for prompt {first}",
                        field="reward",
                    )
        return orjson.loads(bytes(data))


def package(spec: SimpleReward) -> Reward:
    """Raises: BadRequest when no installed package offers it."""
    name = spec.entry or ""
    function = find_entry(GROUP, name, "reward.entry")
    if not callable(function):
        raise BadRequest(f"{name} of {GROUP} can't be called", field="reward.entry")
    return PackageCall(name, cast(PackageReward, function), spec.timeout_s)


def endpoint(spec: SimpleReward, allowed: Mapping[str, RewardEndpoint]) -> Reward:
    """Raises: BadRequest when the operator has not allowed it."""
    name = spec.entry or ""
    if name not in allowed:
        known = ", ".join(sorted(allowed)) or "none"
        raise BadRequest(f"reward endpoint {name[:80]!r} is not allowed here; known are: {known}", field="reward.entry")
    return EndpointCall(name, allowed[name], spec.timeout_s)


def _as_plain(attempts: Sequence[Attempt]) -> list[dict[str, JsonValue]]:
    """Attempts as those outside are given them."""
    return [{"prompt": a.prompt, "completion": a.completion, "row": dict(a.row)} for a in attempts]


def _too_late(kind: str, timeout_s: float, prompt_index: int) -> RewardFailed:
    return RewardFailed(
        f"reward {kind} did not answer within {timeout_s:g} s for prompt {prompt_index}", field="reward"
    )
