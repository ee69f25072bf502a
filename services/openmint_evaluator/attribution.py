"""Which revision answers? A paired test between the right one and each named alternative. Pure.

For each probe token, E is the engine's logprob, R the reference's for the right revision and A for an alternative.
With the heavy-tailed noise log p(e) = -log(1 + (e / s)^2), evidence in nats for the right one is

    L = sum over tokens of log(1 + ((E - A) / s)^2) - log(1 + ((E - R) / s)^2).

If the alternative answered, the chance of L >= c is at most exp(-c) (a likelihood ratio, Markov's inequality), so
c = 13.9 means an error below 1e-6 however many tokens there are. Raw logprobs: subtracting the base's on both sides
makes the noise larger, and correlations of differences from the base can't tell siblings apart.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from openmint_evaluator.agreement import TokenLogprobs, pairs

ERROR_RATE = 1e-6
DECISIVE_NATS = -math.log(ERROR_RATE)

HALF_PRECISION_SCALE = 0.06
"""Nats: the spread of a bf16 engine around an fp32 reference, measured on real adapters."""

FULL_PRECISION_SCALE = 1e-3
"""For an engine that computes in fp32: its noise is about 1e-5, and a wider scale would hide mild adapters."""

FULL_PRECISION_NOISE = 2e-3
"""An engine whose base rows are nearer than this to the reference computes in fp32."""

POWER_SIGMA = NormalDist().inv_cdf(1 - ERROR_RATE)

Decision = Literal["right", "other", "neither", "too weak to tell"]


@dataclass(frozen=True, slots=True)
class PairedTest:
    """The outcome against one alternative.

    `expected_nats` is what the evidence would be if the right revision answered with the usual noise, `power_nats`
    what it is then at least, but for one case in a million.
    """

    alternative: str
    effect: float
    evidence_nats: float
    expected_nats: float
    power_nats: float
    decision: Decision


def noise_scale(base_noise: float) -> float:
    """The scale s for an engine whose base rows differ from the reference by `base_noise` nats on average."""
    return FULL_PRECISION_SCALE if base_noise < FULL_PRECISION_NOISE else HALF_PRECISION_SCALE


def paired_test(
    alternative: str, engine: TokenLogprobs, right: TokenLogprobs, other: TokenLogprobs, scale: float
) -> PairedTest:
    """Decide between the right revision and one alternative.

    `too weak to tell`: the two are so alike on these tokens that even the right revision would not show.
    `neither`: the right revision would have shown, and the alternative too, but the evidence is for none of them.
    Raises: ValueError when the lists differ in length.
    """
    evidence = sum(
        _loss(e - a, scale) - _loss(e - r, scale) for (e, r), a in zip(pairs(engine, right), other, strict=True)
    )
    expected, spread = _under_right(right, other, scale)
    power = expected - POWER_SIGMA * spread
    effect = sum(abs(r - a) for r, a in pairs(right, other)) / max(1, len(right))
    if evidence >= DECISIVE_NATS:
        decision: Decision = "right"
    elif evidence <= -DECISIVE_NATS:
        decision = "other"
    elif power < DECISIVE_NATS:
        decision = "too weak to tell"
    else:
        decision = "neither"
    return PairedTest(alternative, effect, evidence, expected, power, decision)


def closest(engine: TokenLogprobs, candidates: Mapping[str, TokenLogprobs], scale: float) -> str:
    """The name of the candidate that the engine agrees with best, for saying who seems to have answered."""
    return min(candidates, key=lambda name: sum(_loss(e - c, scale) for e, c in pairs(engine, candidates[name])))


def _loss(error: float, scale: float) -> float:
    return math.log1p((error / scale) ** 2) if math.isfinite(error) else math.inf


def _under_right(right: TokenLogprobs, other: TokenLogprobs, scale: float) -> tuple[float, float]:
    """Mean and standard deviation of the evidence when the right revision answers with normal noise of one scale."""
    mean = variance = 0.0
    for r, a in pairs(right, other):
        shift = (r - a) / scale
        terms = [math.log1p((x + shift) ** 2) - at_zero for x, at_zero in zip(_NORMAL_NODES, _AT_ZERO, strict=True)]
        term_mean = sum(w * t for w, t in zip(_NORMAL_WEIGHTS, terms, strict=True))
        mean += term_mean
        variance += sum(w * (t - term_mean) ** 2 for w, t in zip(_NORMAL_WEIGHTS, terms, strict=True))
    return mean, math.sqrt(variance)


def _normal_grid(points: int = 17, reach: float = 4.0) -> tuple[Sequence[float], Sequence[float]]:
    nodes = [-reach + 2 * reach * i / (points - 1) for i in range(points)]
    densities = [math.exp(-x * x / 2) for x in nodes]
    total = sum(densities)
    return nodes, [d / total for d in densities]


_NORMAL_NODES, _NORMAL_WEIGHTS = _normal_grid()
_AT_ZERO = [math.log1p(x * x) for x in _NORMAL_NODES]
