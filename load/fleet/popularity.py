"""Which policies are asked for: lognormal popularity as Azure Functions show it, and Poisson arrivals.

Source of the parameters: shared traces' README, "Azure Functions 2019": invocations per function and day are about
lognormal; ln-sd 3.6 with a cap follows the published shares of the head (the top 0.001 % take 11 %).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LN_SD = 3.6

LARGEST_SHARE = 0.011
"""Of a million policies the ten largest take 11 % of the calls."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Requests in the order of their times. `times_s` and `policies` have shape [requests]."""

    times_s: NDArray[np.float64]
    policies: NDArray[np.int64]


def popularity(policies: int, seed: int) -> NDArray[np.float64]:
    """The share of each policy, shape [policies], sum 1, none above LARGEST_SHARE."""
    weights = np.random.default_rng([seed, 1]).lognormal(0.0, LN_SD, policies)
    largest_share = max(LARGEST_SHARE, 2.0 / policies)
    for _ in range(20):  # Each cut makes the rest weigh more; a few rounds settle it.
        shares = weights / weights.sum()
        if shares.max() <= largest_share * 1.001:
            break
        weights = np.minimum(shares, largest_share)
    return weights / weights.sum()


def poisson_arrivals(shares: NDArray[np.float64], rate_rps: float, seconds: float, seed: int) -> Arrivals:
    """Independent requests at a steady rate."""
    random = np.random.default_rng([seed, 2])
    count = int(rate_rps * seconds)
    times_s = np.sort(random.uniform(0.0, seconds, count))
    policies = np.searchsorted(np.cumsum(shares), random.uniform(0.0, 1.0, count)).clip(max=len(shares) - 1)
    return Arrivals(times_s, policies.astype(np.int64))
