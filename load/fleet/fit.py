"""From recorded loads to the timings of a simulated engine: `python -m load.fleet.fit FILE…`.

A file has one JSON object a line and load: `stage_ms` (0 when the copy was there already), `attach_ms` (the whole call
that brought it, its wait for a gap included), `batch` (adapters in that call), `wait_ms` (asked until resident).
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from openmint.engines.simulated_timings import SimulatedTimings

MIN_LOADS = 8
"""Fewer say nothing."""


@dataclass(frozen=True, slots=True)
class LoadSeen:
    """One recorded load; times in milliseconds."""

    stage_ms: float
    attach_ms: float
    batch: int
    wait_ms: float


def read_loads(lines: Iterable[str]) -> list[LoadSeen]:
    """Raises: ValueError for a line that is not such an object."""
    loads: list[LoadSeen] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            seen = json.loads(line)
            load = LoadSeen(
                float(seen["stage_ms"]), float(seen["attach_ms"]), int(seen["batch"]), float(seen["wait_ms"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"line {number} is no load: {line[:80]!r}") from error
        if load.batch < 1:
            raise ValueError(f"line {number}: a batch of {load.batch}")
        loads.append(load)
    return loads


def fit(loads: Sequence[LoadSeen], known: SimulatedTimings | None = None) -> SimulatedTimings:
    """Timings that explain the loads; what they don't tell is taken from `known`.

    Staging is the median of those that staged. For the attach call, gap + attach * batch by least squares over the
    medians of each batch size (weighted by how often it came), so that one stalled call bends nothing; with a single
    size the gap of `known` is kept, as far as it fits in. Raises: ValueError when there are fewer than MIN_LOADS.
    """
    if len(loads) < MIN_LOADS:
        raise ValueError(f"{len(loads)} loads are too few; {MIN_LOADS} are needed")
    known = known or SimulatedTimings()
    staged = [load.stage_ms for load in loads if load.stage_ms > 0]
    by_batch: dict[int, list[float]] = {}
    for load in loads:
        by_batch.setdefault(load.batch, []).append(load.attach_ms)
    points = [(batch, median(times), len(times) / batch) for batch, times in by_batch.items()]
    gap_ms, attach_ms = _line(points, 1000 * known.gap_s)
    stage_s = median(staged) / 1000 if staged else known.stage_s
    return replace(known, stage_s=stage_s, gap_s=gap_ms / 1000, attach_s=attach_ms / 1000)


def _line(points: Sequence[tuple[int, float, float]], known_gap_ms: float) -> tuple[float, float]:
    """Intercept and slope, neither below zero, of points (size, ms, weight)."""
    total = sum(weight for _, _, weight in points)
    mean_size = sum(size * weight for size, _, weight in points) / total
    mean_ms = sum(ms * weight for _, ms, weight in points) / total
    spread = sum(weight * (size - mean_size) ** 2 for size, _, weight in points)
    if spread == 0:
        gap_ms = min(known_gap_ms, mean_ms / 2)
        return gap_ms, (mean_ms - gap_ms) / mean_size
    slope = sum(weight * (size - mean_size) * (ms - mean_ms) for size, ms, weight in points) / spread
    slope = max(0.0, slope)
    gap_ms = mean_ms - slope * mean_size
    return (gap_ms, slope) if gap_ms >= 0 else (0.0, mean_ms / mean_size)


def main(arguments: list[str] | None = None) -> int:
    """Print the timings that fit."""
    parser = argparse.ArgumentParser(prog="python -m load.fleet.fit", description="Fit a simulated engine's timings")
    parser.add_argument("files", nargs="+", type=Path)
    given = parser.parse_args(arguments)
    lines = [line for path in given.files for line in path.read_text().splitlines()]
    loads = read_loads(lines)
    print(fit(loads))
    print(f"{len(loads)} loads; wait, median: {median(load.wait_ms for load in loads):.1f} ms")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
