"""Running streams, and what happens to the time between their tokens while adapters are attached beside them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from load.clients.drivers import at_once
from load.clients.figures import percentile
from load.clients.records import Call, Outcome, Target
from load.stack.policies import Policy

PROMPT = "Window {window}, stream {number}: a story about the sea begins like this:"
BEGUN_AFTER_S = 1.0
"""All streams have their first token by then; only then is disturbed."""

Disturb = Callable[[int], Awaitable[None]]
"""One disturbance, by its number within the window."""


@dataclass(frozen=True, slots=True)
class Window:
    """Streams that ran side by side, and the gaps between their tokens while all of them ran."""

    gaps_ms: tuple[float, ...]
    disturbances: int
    faults: int

    @property
    def p99_ms(self) -> float:
        """Of the gaps."""
        return percentile(self.gaps_ms, 0.99)

    @property
    def p50_ms(self) -> float:
        """Of the gaps."""
        return percentile(self.gaps_ms, 0.50)

    @property
    def max_ms(self) -> float:
        """The longest gap."""
        return max(self.gaps_ms, default=float("nan"))


async def run_window(
    target: Target,
    streams: Sequence[Policy],
    tokens: int,
    number: int,
    disturb: Disturb | None = None,
    *,
    per_s: float = 5.0,
    at_most: int = 24,
) -> Window:
    """Stream `tokens` from each policy; meanwhile disturb `per_s` times a second, never more than `at_most` times."""
    calls = [Call(policy, PROMPT.format(window=number, number=each), tokens) for each, policy in enumerate(streams)]
    began_s = time.monotonic() + BEGUN_AFTER_S
    running = asyncio.create_task(at_once(target, calls))
    disturbing: list[asyncio.Task[None]] = []
    while disturb is not None and len(disturbing) < at_most:
        due_s = began_s + len(disturbing) / per_s
        await asyncio.wait([running], timeout=max(0.0, due_s - time.monotonic()))
        if running.done():
            break
        disturbing.append(asyncio.ensure_future(disturb(len(disturbing))))
    outcomes = await running
    told = await asyncio.gather(*disturbing, return_exceptions=True)
    for outcome in told:
        if isinstance(outcome, BaseException):
            raise outcome
    return Window(
        tuple(gap * 1000 for gap in common_gaps(outcomes)),
        len(disturbing),
        sum(not outcome.is_answered for outcome in outcomes),
    )


def common_gaps(outcomes: Sequence[Outcome]) -> list[float]:
    """Gaps, in seconds, between tokens that came while every stream was running and had begun."""
    if any(not outcome.token_s for outcome in outcomes):
        return []
    begin_s = max(outcome.token_s[0] for outcome in outcomes)
    end_s = min(outcome.token_s[-1] for outcome in outcomes)
    found: list[float] = []
    for outcome in outcomes:
        for before, after in zip(outcome.token_s, outcome.token_s[1:], strict=False):
            if before >= begin_s and after <= end_s:
                found.append(after - before)
    return found
