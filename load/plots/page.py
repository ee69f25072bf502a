"""Draws a recording as one page. A panel that has nothing to show is left out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator

from load.plots.events import (
    OURS,
    DepthEvent,
    LoadEvent,
    MarkEvent,
    Recording,
    RequestEvent,
    group_of,
    system_of,
)
from load.plots.lanes import EngineLanes, Staircase, lanes_of, shares_up_to, staircases, waiting_over_time

PHASE_COLOURS = {"queue": "#cfd4da", "stage": "#4c8dd6", "staged": "#bcd7f2", "attach": "#e4572e"}
VARIANT_COLOURS = ("#e4572e", "#2e5077", "#3a9d6e", "#a06cd5", "#c98a00", "#555555")
CLASS_COLOURS = {"interactive": "#e4572e", "rollout": "#c98a00", "evaluation": "#4c8dd6", "prefetch": "#cfd4da"}
LINES = ("-", "--", ":", "-.")

WIDTH_IN = 11.0
LANE_IN = 0.09
"""Height of one lane; engines with few loads still get a readable row."""
MAX_TIMELINE_IN = 9.0

ABOVE: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.99), "frameon": False, "fontsize": 8}
"""Legends stand over their panel, where no data is."""

Panel = Callable[[Axes], None]


def draw_page(recording: Recording, out: Path) -> None:
    """Write the page; the ending of `out` says in which form. Raises: ValueError when there is nothing to draw."""
    panels = [*_timelines(recording), *_depths(recording), *_ttfts(recording), *_staircases(recording)]
    if not panels:
        raise ValueError("the recording has no loads, no depths and no requests")
    heights = [height for height, _ in panels]
    figure = Figure(figsize=(WIDTH_IN, sum(heights) + 0.9 * len(panels)), layout="constrained")
    rows: Any = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    for (axes,), (_, panel) in zip(rows, panels, strict=True):
        panel(axes)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(_title(recording))
    figure.savefig(out, dpi=110)


def _title(recording: Recording) -> str:
    lines = ["  ".join(filter(None, (run.scenario, run.title, run.machine))) for run in recording.runs]
    return "\n".join(dict.fromkeys(filter(None, lines)))


def _variants(recording: Recording) -> list[str]:
    """Ours first."""
    found = {event.variant for event in (*recording.requests, *recording.loads, *recording.depths)}
    return sorted(found, key=lambda variant: (group_of(variant), not system_of(variant).startswith(OURS), variant))


def _colours(recording: Recording) -> dict[str, str]:
    """A colour for each variant; the same system has the same one in all groups."""
    systems = list(dict.fromkeys(map(system_of, _variants(recording))))
    return {
        variant: VARIANT_COLOURS[systems.index(system_of(variant)) % len(VARIANT_COLOURS)]
        for variant in _variants(recording)
    }


def _timelines(recording: Recording) -> list[tuple[float, Panel]]:
    panels: list[tuple[float, Panel]] = []
    for variant in _variants(recording):
        loads = [load for load in recording.loads if load.variant == variant]
        if loads:
            engines = lanes_of(loads)
            height = min(MAX_TIMELINE_IN, sum(max(0.5, LANE_IN * (engine.lanes + 1)) for engine in engines) + 0.4)
            panels.append((height, _timeline_panel(recording, variant, engines, len(loads))))
    return panels


def _timeline_panel(recording: Recording, variant: str, engines: list[EngineLanes], loads: int) -> Panel:
    def draw(axes: Axes) -> None:
        floor = 0
        ticks: list[float] = []
        for engine in engines:
            for phase, colour in PHASE_COLOURS.items():
                bars = [bar for bar in engine.bars if bar.phase == phase]
                for lane in sorted({bar.lane for bar in bars}):
                    spans = [(bar.from_t, bar.to_t - bar.from_t) for bar in bars if bar.lane == lane]
                    axes.broken_barh(spans, (floor + lane + 0.1, 0.8), facecolors=colour)
            ticks.append(floor + engine.lanes / 2)
            floor += engine.lanes + 1
            axes.axhline(floor - 0.5, color="#eeeeee", linewidth=0.8)
        axes.set_yticks(ticks, [engine.engine for engine in engines])
        axes.set_ylim(floor - 0.5, -0.5)
        axes.set_xlabel("seconds")
        axes.set_title(f"{loads} loads of {variant}, by engine", loc="left", fontsize=10)
        names = {"queue": "in the queue", "stage": "staging", "staged": "staged, waits", "attach": "attaching"}
        axes.legend(
            handles=[Patch(color=colour, label=names[phase]) for phase, colour in PHASE_COLOURS.items()],
            **ABOVE, ncols=4,
        )  # fmt: skip
        _mark(axes, recording)

    return draw


def _depths(recording: Recording) -> list[tuple[float, Panel]]:
    panels: list[tuple[float, Panel]] = []
    for variant in _variants(recording):
        samples = sorted((d for d in recording.depths if d.variant == variant), key=lambda sample: sample.t)
        loads = [load for load in recording.loads if load.variant == variant and load.placed_t is not None]
        if samples:
            classes = sorted({load_class for sample in samples for load_class in sample.waiting})
            times = [sample.t for sample in samples]
            depth = {name: [sample.waiting.get(name, 0) for sample in samples] for name in classes}
            under_way: list[int] | None = [sample.under_way for sample in samples]
        elif loads:
            times, depth = waiting_over_time(loads)
            under_way = None
        else:
            continue
        panels.append((1.8, _depth_panel(recording, variant, times, depth, under_way)))
    return panels


def _depth_panel(
    recording: Recording, variant: str, times: list[float], depth: dict[str, list[int]], under_way: list[int] | None
) -> Panel:
    def draw(axes: Axes) -> None:
        if depth:
            colours = [CLASS_COLOURS.get(name, "#999999") for name in depth]
            axes.stackplot(times, *depth.values(), labels=list(depth), colors=colours, step="post")
        if under_way is not None:
            axes.step(times, under_way, where="post", color="black", linewidth=1.0, label="under way")
        axes.set_ylim(bottom=0)
        axes.set_ylabel("loads")
        axes.set_xlabel("seconds")
        axes.set_title(f"loads that wait, by class ({variant})", loc="left", fontsize=10)
        axes.legend(**ABOVE, ncols=5)
        _mark(axes, recording)

    return draw


def _ttfts(recording: Recording) -> list[tuple[float, Panel]]:
    groups: dict[str, list[RequestEvent]] = {}
    for request in recording.requests:
        groups.setdefault(group_of(request.variant), []).append(request)
    colours = _colours(recording)
    return [
        (3.0, _ttft_panel(group, requests, colours))
        for group, requests in sorted(groups.items())
        if any(request.ttft_s is not None for request in requests)
    ]


def _ttft_panel(group: str, requests: list[RequestEvent], colours: dict[str, str]) -> Panel:
    def draw(axes: Axes) -> None:
        kinds: dict[tuple[str, str, bool], list[float]] = {}
        for request in requests:
            if request.ttft_s is not None:
                kinds.setdefault((request.variant, request.load_class, request.is_cold), []).append(request.ttft_s)
        classes = sorted({(load_class, is_cold) for _, load_class, is_cold in kinds}, key=lambda key: (key[1], key[0]))
        for (variant, load_class, is_cold), times in sorted(kinds.items()):
            line = LINES[classes.index((load_class, is_cold)) % len(LINES)]
            label = f"{system_of(variant)}, {load_class}, {'cold' if is_cold else 'warm'} ({len(times)})"
            axes.step(*shares_up_to(times), where="post", label=label, color=colours[variant], linestyle=line)
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(_plain_number))
        axes.xaxis.set_minor_formatter(FuncFormatter(_plain_number))
        axes.set_ylim(0, 101)
        axes.set_ylabel("% answered by then")
        axes.set_xlabel("seconds to the first token")
        lost = sum(request.outcome != "answered" for request in requests)
        title = f"time to first token ({lost} of {len(requests)} requests refused or failed)"
        axes.set_title(_titled(group, title), loc="left", fontsize=10)
        axes.grid(alpha=0.3, which="both")
        axes.legend(loc="lower right", fontsize=8)

    return draw


def _staircases(recording: Recording) -> list[tuple[float, Panel]]:
    groups: dict[str, list[Staircase]] = {}
    for stairs in staircases(recording.requests):
        groups.setdefault(group_of(stairs.variant), []).append(stairs)
    colours = _colours(recording)
    return [(3.0, _staircase_panel(group, found, colours)) for group, found in sorted(groups.items())]


def _staircase_panel(group: str, found: list[Staircase], colours: dict[str, str]) -> Panel:
    def draw(axes: Axes) -> None:
        for stairs in found:
            for wave in stairs.waves:
                axes.step(range(1, len(wave) + 1), wave, where="mid", color=colours[stairs.variant], alpha=0.25)
            axes.step(
                range(1, len(stairs.median) + 1), stairs.median, where="mid", color=colours[stairs.variant],
                linewidth=2.0, label=f"{system_of(stairs.variant)}, median of {len(stairs.waves)} waves",
            )  # fmt: skip
        axes.set_ylim(bottom=0)
        axes.set_xlabel("cold request of its wave, in the order of their first tokens")
        axes.set_ylabel("seconds to the first token")
        axes.set_title(_titled(group, "cold waves: what each further policy waits"), loc="left", fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", fontsize=8)

    return draw


def _titled(group: str, title: str) -> str:
    return f"{group}: {title}" if group else title


def _mark(axes: Axes, recording: Recording) -> None:
    """The same stretch of time in every panel that has one, and what happened in it."""
    times = [t for event in (*recording.loads, *recording.depths, *recording.marks) for t in (event.t, _last_t(event))]
    margin_s = 0.02 * (max(times) - min(times)) or 1.0
    axes.set_xlim(min(times) - margin_s, max(times) + margin_s)
    for mark in recording.marks:
        axes.axvline(mark.t, color="black", linestyle="--", linewidth=0.8)
        axes.annotate(mark.label, (mark.t, 1.0), xycoords=("data", "axes fraction"), fontsize=7, rotation=90, va="top")


def _last_t(event: LoadEvent | DepthEvent | MarkEvent) -> float:
    return event.last_t if isinstance(event, LoadEvent) else event.t


def _plain_number(value: float, _: float) -> str:
    return f"{value:g}"
