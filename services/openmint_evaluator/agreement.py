"""How far an engine's logprobs are from a reference's, token by token. Pure: lists of nats in, numbers out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

TokenLogprobs = Sequence[float]
"""Logprobs in nats of probe tokens, all probes one after the other."""

NOISE_FLOOR = 1e-6
"""Nats. Below what fp32 kernels differ by; keeps the ratio of effect to noise finite on equal kernels."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Absolute differences in nats over `tokens` tokens; `non_finite` counts the tokens that were no numbers."""

    mean: float
    p99: float
    maximum: float
    tokens: int
    non_finite: int


def measure_agreement(ours: TokenLogprobs, theirs: TokenLogprobs) -> Agreement:
    """Compare two lists of the same tokens. Non-finite tokens are counted and left out of the other figures.

    Raises: ValueError when the lists differ in length.
    """
    differences = sorted(abs(a - b) for a, b in pairs(ours, theirs) if math.isfinite(a) and math.isfinite(b))
    non_finite = len(ours) - len(differences)
    if not differences:
        return Agreement(math.nan, math.nan, math.nan, 0, non_finite)
    p99 = differences[min(len(differences) - 1, math.ceil(0.99 * len(differences)) - 1)]
    return Agreement(sum(differences) / len(differences), p99, differences[-1], len(differences), non_finite)


def pairs(ours: TokenLogprobs, theirs: TokenLogprobs) -> list[tuple[float, float]]:
    """Token by token. Raises: ValueError when the lists differ in length."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} tokens against {len(theirs)}")
    return list(zip(ours, theirs, strict=True))
