"""How hot each revision is: requests for loads and requests seen running, fading with time. Bounded."""

from dataclasses import dataclass
from math import exp, log

MAX_REMEMBERED = 200_000
"""About 40 MB; the coldest half goes when it is full."""


@dataclass(slots=True)
class Heat:
    """A fading count of demands, exact at `at_s`."""

    amount: float
    at_s: float


class DemandMeter:
    """The rate at which each revision is wanted."""

    def __init__(self, half_life_s: float) -> None:
        self._decay = log(2) / half_life_s
        self._heats: dict[str, Heat] = {}

    def add(self, digest: str, now_s: float, amount: float = 1.0) -> None:
        """The revision was wanted `amount` times."""
        heat = self._heats.get(digest)
        if heat is None:
            if len(self._heats) >= MAX_REMEMBERED:
                self._drop_coldest(now_s)
            self._heats[digest] = Heat(amount, now_s)
        else:
            heat.amount, heat.at_s = self._faded(heat, now_s) + amount, now_s

    def per_min(self, digest: str, now_s: float) -> float:
        """Demands a minute, as the fading count has them."""
        heat = self._heats.get(digest)
        return self._faded(heat, now_s) * self._decay * 60.0 if heat else 0.0

    def last_s(self, digest: str) -> float:
        """When it was last wanted; minus infinity when that is forgotten."""
        heat = self._heats.get(digest)
        return heat.at_s if heat else float("-inf")

    def _faded(self, heat: Heat, now_s: float) -> float:
        return heat.amount * exp(-self._decay * max(0.0, now_s - heat.at_s))

    def _drop_coldest(self, now_s: float) -> None:
        warmest_first = sorted(self._heats.items(), key=lambda item: -self._faded(item[1], now_s))
        self._heats = dict(warmest_first[: MAX_REMEMBERED // 2])
