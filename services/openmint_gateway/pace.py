"""How fast an engine works off requests, learned from those it has finished. No clock and no I/O: times are given.

Work is counted in tokens (`cost`). What counts is the rate while the engine has as much to do as it takes: an idle
engine's throughput says how much is asked of it, not how much it could do.
"""

import math

MEMORY_S = 20.0
"""Busy seconds after which an observation counts e times less."""

TRUSTED_FINISHES = 16
"""Fewer than a batch have mostly measured the ramp of the first one."""

PROVISIONAL_FINISHES = 4


class Pace:
    """The rate of one engine."""

    def __init__(self) -> None:
        self._busy_since_s: float | None = None
        self._busy_s = 0.0
        self._busy_cost = 0.0
        self._busy_finishes = 0
        self._finishes = 0
        self._cost = 0.0
        self._service_s = 0.0
        self._most_at_once = 0

    def sent(self, at_once: int) -> None:
        """A request was sent; so many sequences are with the engine now."""
        self._most_at_once = max(self._most_at_once, at_once)

    def mark(self, now_s: float, *, is_busy: bool) -> None:
        """Until now it was as it was marked last; from now on it has as much as it takes, or not."""
        if self._busy_since_s is not None:
            passed_s = now_s - self._busy_since_s
            fading = math.exp(-passed_s / MEMORY_S)
            self._busy_cost *= fading
            self._busy_s = self._busy_s * fading + passed_s
        self._busy_since_s = now_s if is_busy else None

    def finished(self, cost: float, service_s: float) -> None:
        """A request has ended by itself. Call it before the `mark` that follows from it."""
        self._finishes += 1
        self._cost += (cost - self._cost) / min(self._finishes, 2 * TRUSTED_FINISHES)
        self._service_s += (service_s - self._service_s) / min(self._finishes, 2 * TRUSTED_FINISHES)
        if self._busy_since_s is not None:
            self._busy_cost += cost
            self._busy_finishes += 1

    def rate(self) -> float | None:
        """Tokens per second of the busy engine; None before enough was seen.

        Before a whole batch has ended in a busy time, it is told from how long single requests take: somewhat too
        fast, for they were measured in a smaller batch.
        """
        if self._busy_finishes >= TRUSTED_FINISHES and self._busy_s > 0:
            return self._busy_cost / self._busy_s
        if self._finishes >= PROVISIONAL_FINISHES and self._service_s > 0:
            return self._cost / self._service_s * self._most_at_once
        return None
