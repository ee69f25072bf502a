"""Predicted prefetch: a revision that is asked for at regular times is loaded shortly before the next one.

Only what comes and goes needs it: a nightly report, a job every five minutes. A rhythm is the mean of the last gaps
between cold requests, believed while they differ little; demand that bunches or wanders never counts as one.
"""

from collections import deque
from dataclasses import dataclass, field
from statistics import fmean, pstdev

from openmint_scheduler.messages import LoadKey

GAPS = 3
"""Gaps that must agree."""

MOST_VARIATION = 0.15
"""Standard deviation over mean: timers are below 0.05, people above 0.5."""

LEAST_GAP_S = 20.0
"""What comes more often stays resident by its demand."""

MOST_GAP_S = 26 * 3600.0
MOST_REMEMBERED = 50_000


@dataclass(slots=True)
class Beat:
    """When a revision was asked for, and the gaps between."""

    last_s: float
    gaps_s: deque[float] = field(default_factory=lambda: deque[float](maxlen=GAPS))


class RhythmBook:
    """The rhythm of each revision that has one."""

    def __init__(self) -> None:
        self._beats: dict[LoadKey, Beat] = {}

    def heard(self, key: LoadKey, now_s: float) -> float | None:
        """It was asked for now; when it will be again, if that can be said."""
        beat = self._beats.pop(key, None)
        if beat is None:
            beat = Beat(now_s)
        elif now_s - beat.last_s >= LEAST_GAP_S:
            beat.gaps_s.append(now_s - beat.last_s)
            beat.last_s = now_s
        self._beats[key] = beat
        if len(self._beats) > MOST_REMEMBERED:
            del self._beats[next(iter(self._beats))]
        gaps_s = beat.gaps_s
        if len(gaps_s) < GAPS or max(gaps_s) > MOST_GAP_S:
            return None
        mean_s = fmean(gaps_s)
        return beat.last_s + mean_s if pstdev(gaps_s) <= MOST_VARIATION * mean_s else None
