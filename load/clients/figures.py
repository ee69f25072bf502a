"""Figures over outcomes: percentiles, goodput, refusals, and how many policies got an answer at all."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from load.clients.records import Outcome


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least `share` of them (0 to 1) do not exceed; NaN of none."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def ttfts(outcomes: Iterable[Outcome]) -> list[float]:
    """Seconds to the first token of what was answered."""
    return [o.ttft_s for o in outcomes if o.is_answered and o.ttft_s is not None]


def goodput(outcomes: Iterable[Outcome], bound_s: float, wall_s: float) -> float:
    """Answers a second whose first token came within the bound."""
    return sum(1 for ttft in ttfts(outcomes) if ttft <= bound_s) / wall_s


def faults(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """What was neither answered nor refused."""
    return [o for o in outcomes if o.is_fault]


def distinct_answered(outcomes: Iterable[Outcome]) -> int:
    """Policies that got at least one whole answer."""
    return len({o.call.policy for o in outcomes if o.is_answered})


@dataclass(frozen=True, slots=True)
class Summary:
    """One run in numbers. Goodput in answers a second for each bound, in the order of the bounds."""

    calls: int
    answered: int
    refused: int
    faults: int
    distinct_answered: int
    ttft_p50_s: float
    ttft_p95_s: float
    ttft_p99_s: float
    goodput: tuple[float, ...]
    answers_per_s: float
    tokens_per_s: float


def summarise(outcomes: Sequence[Outcome], wall_s: float, bounds_s: Sequence[float] = (5.0, 10.0)) -> Summary:
    """All figures of one run of `wall_s` seconds."""
    times = ttfts(outcomes)
    answered = sum(o.is_answered for o in outcomes)
    return Summary(
        len(outcomes),
        answered,
        sum(o.is_refused for o in outcomes),
        len(faults(outcomes)),
        distinct_answered(outcomes),
        percentile(times, 0.50),
        percentile(times, 0.95),
        percentile(times, 0.99),
        tuple(goodput(outcomes, bound_s, wall_s) for bound_s in bounds_s),
        answered / wall_s,
        sum(o.tokens for o in outcomes if o.is_answered) / wall_s,
    )
