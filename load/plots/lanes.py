"""What is drawn, as numbers: lanes of loads, depths from loads, cumulative shares, staircases. No drawing here."""

import heapq
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from load.plots.events import LoadEvent, RequestEvent

NO_ENGINE = "not placed"


@dataclass(frozen=True, slots=True)
class Bar:
    """A stretch of one load's life, in the lane of an engine."""

    lane: int
    phase: str
    """`queue`, `stage`, `staged` (waits to be attached) or `attach`."""
    from_t: float
    to_t: float


@dataclass(slots=True)
class EngineLanes:
    """The loads of one engine, so many lanes high that none lies on another."""

    engine: str
    lanes: int = 0
    bars: list[Bar] = field(default_factory=list[Bar])


def lanes_of(loads: Iterable[LoadEvent]) -> list[EngineLanes]:
    """Each engine's loads, earliest first, every one in the lowest lane that is free."""
    by_engine: dict[str, list[LoadEvent]] = {}
    for load in sorted(loads, key=lambda load: load.t):
        by_engine.setdefault(load.engine or NO_ENGINE, []).append(load)
    found: list[EngineLanes] = []
    for engine, its_loads in sorted(by_engine.items()):
        lanes = EngineLanes(engine)
        free: list[int] = []
        busy: list[tuple[float, int]] = []
        for load in its_loads:
            while busy and busy[0][0] <= load.t:
                heapq.heappush(free, heapq.heappop(busy)[1])
            if free:
                lane = heapq.heappop(free)
            else:
                lane, lanes.lanes = lanes.lanes, lanes.lanes + 1
            heapq.heappush(busy, (load.last_t, lane))
            lanes.bars += bars_of(load, lane)
        found.append(lanes)
    return found


def bars_of(load: LoadEvent, lane: int) -> list[Bar]:
    """The phases of one load; a phase whose end is not known ends with the load."""
    if load.placed_t is None and load.resident_t is not None:
        return [Bar(lane, "attach", load.t, load.resident_t)]
    edges: list[tuple[str, float | None]] = [
        ("queue", load.t), ("stage", load.placed_t), ("staged", load.staged_t), ("attach", load.attaching_t),
    ]  # fmt: skip
    known = [(phase, at) for phase, at in edges if at is not None]
    ends = [at for _, at in known[1:]] + [load.last_t]
    return [
        Bar(lane, phase, at, until) for (phase, at), until in zip(known, ends, strict=True) if until > at
    ]  # fmt: skip


def waiting_over_time(loads: Sequence[LoadEvent]) -> tuple[list[float], dict[str, list[int]]]:
    """Loads in the queue by class, at every moment at which that changed."""
    changes: list[tuple[float, str, int]] = []
    for load in loads:
        changes += [(load.t, load.load_class, 1), (load.last_t if load.placed_t is None else load.placed_t,
                    load.load_class, -1)]  # fmt: skip
    classes = sorted({load.load_class for load in loads})
    now = dict.fromkeys(classes, 0)
    times: list[float] = []
    depth: dict[str, list[int]] = {load_class: [] for load_class in classes}
    for at, load_class, change in sorted(changes):
        now[load_class] += change
        times.append(at)
        for each in classes:
            depth[each].append(now[each])
    return times, depth


def shares_up_to(values: Iterable[float]) -> tuple[list[float], list[float]]:
    """Values in order, and which share of them is at most that (percent)."""
    ordered = sorted(values)
    return ordered, [100.0 * (place + 1) / len(ordered) for place in range(len(ordered))]


@dataclass(frozen=True, slots=True)
class Staircase:
    """The cold requests of one variant's waves: each wave's times in order, and the median of each place (seconds)."""

    variant: str
    waves: list[list[float]]
    median: list[float]


def staircases(requests: Iterable[RequestEvent]) -> list[Staircase]:
    """One for each variant that has a wave of more than one cold request."""
    waves: dict[str, dict[int, list[float]]] = {}
    for request in requests:
        if request.is_cold and request.ttft_s is not None:
            waves.setdefault(request.variant, {}).setdefault(request.wave, []).append(request.ttft_s)
    found: list[Staircase] = []
    for variant, by_wave in sorted(waves.items()):
        steps = [sorted(times) for _, times in sorted(by_wave.items()) if len(times) > 1]
        if steps:
            height = max(len(times) for times in steps)
            median = [statistics.median(s[place] for s in steps if place < len(s)) for place in range(height)]
            found.append(Staircase(variant, steps, median))
    return found
