"""How fast a pool works off its queue, and so how long a new load will wait."""

from openmint_scheduler.limits import Limits

UNKNOWN_GAP_S = 0.2
"""Between two finished loads, before anything was measured."""

SMOOTHING = 0.05
"""Loads finish in batches: some twenty gaps make a steady mean."""

MIN_QUEUE_FOR_VERDICT = 64
"""Below it the estimate is not worth refusing anybody for."""

MAX_RETRY_AFTER_S = 60.0


class Pace:
    """The mean gap between finished loads while others were waiting."""

    def __init__(self) -> None:
        self._gap_s = UNKNOWN_GAP_S
        self._last_s: float | None = None

    def finished(self, now_s: float, are_others_waiting: bool) -> None:
        """One load of the pool was answered."""
        if self._last_s is not None:
            self._gap_s += SMOOTHING * (now_s - self._last_s - self._gap_s)
        self._last_s = now_s if are_others_waiting else None

    def wait_s(self, waiting: int) -> float:
        """How long a load behind `waiting` others will wait."""
        return waiting * self._gap_s

    def retry_after_s(self, waiting: int, limits: Limits) -> float:
        """When asking again may find half of the queue gone."""
        return min(MAX_RETRY_AFTER_S, max(limits.min_retry_after_s, self.wait_s(waiting) / 2))

    def is_hopeless(self, waiting: int, patience_s: float) -> bool:
        """True when a load that comes now would still wait at its deadline."""
        return waiting >= MIN_QUEUE_FOR_VERDICT and self.wait_s(waiting) > patience_s
