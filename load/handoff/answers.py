"""The first token that is timed, and the logprobs of a fixed text that prove whose token it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import httpx

TEXT = "The capital of France is Paris. Two and two make four, and after Monday comes Tuesday."
TIMEOUT_S = 180.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One token with its logprob in nats, and of a proof also those of the text that led to it."""

    token: str
    token_logprob: float
    text_logprobs: tuple[float, ...] = ()


async def ask(client: httpx.AsyncClient, model: str, *, with_proof: bool = False) -> Answer:
    """Ask for one token after the fixed text. What is timed goes without a proof, which costs as much again.

    Raises: httpx.HTTPError when the engine does not answer 200.
    """
    body: dict[str, object] = {"model": model, "prompt": TEXT, "max_tokens": 1, "temperature": 0, "logprobs": 0}
    if with_proof:
        body["prompt_logprobs"] = 0
    found = await client.post("/v1/completions", json=body, timeout=TIMEOUT_S)
    found.raise_for_status()
    return read_answer(found.json())


def read_answer(body: dict[str, Any]) -> Answer:
    """The answer in the body of a completion; the text's first token has no logprob."""
    choice = cast(dict[str, Any], body["choices"][0])
    entries = cast(list[dict[str, dict[str, Any]] | None], choice.get("prompt_logprobs") or [])
    values = [float(next(iter(entry.values()))["logprob"]) for entry in entries if entry]
    return Answer(str(choice["text"]), float(choice["logprobs"]["token_logprobs"][0]), tuple(values))


def largest_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest difference of two rows of logprobs, in nats."""
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def mean_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The mean absolute difference of two rows of logprobs, in nats."""
    return sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / len(ours)
