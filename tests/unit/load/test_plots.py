import asyncio
import random
import time
from pathlib import Path
from typing import Any

import pytest

from load.plots.__main__ import main
from load.plots.events import (
    DepthEvent,
    EventWriter,
    LoadEvent,
    MarkEvent,
    RequestEvent,
    RunEvent,
    group_of,
    read_recording,
)
from load.plots.from_traces import events_of
from load.plots.lanes import bars_of, lanes_of, staircases, waiting_over_time
from load.plots.sampling import depth_recorded
from openmint.trace_files import SpanRecord


def load(t: float, placed: float, staged: float, attaching: float, resident: float, engine: str = "one") -> LoadEvent:
    return LoadEvent(
        t=t, placed_t=placed, staged_t=staged, attaching_t=attaching, resident_t=resident, ended_t=resident,
        engine=engine,
    )  # fmt: skip


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Five waves of eight cold policies, ours and a peer's, on two engines."""
    path, draw = tmp_path / "run.jsonl", random.Random(1)
    with EventWriter(path) as events:
        events.write(RunEvent(scenario="cold-wave", title="8 cold policies, 2 engines", machine="2 cores"))
        for wave in range(5):
            for place in range(8):
                t, wait = wave * 3.0, 0.02 * place * draw.uniform(0.8, 1.2)
                engine = "one" if place % 2 else "two"
                events.write(load(t, t + wait, t + wait + 0.03, t + wait + 0.04, t + wait + 0.05, engine))
                for variant, slope in (("openmint", 0.005), ("stock", 0.016)):
                    ttft_s = 0.3 + slope * place + draw.uniform(0, 0.01)
                    events.write(RequestEvent(t=t, ttft_s=ttft_s, is_cold=True, wave=wave, variant=variant))
            events.write(DepthEvent(t=wave * 3.0, waiting={"interactive": 8 - wave, "prefetch": 2}, under_way=wave))
            events.write(RequestEvent(t=wave * 3.0 + 1, ttft_s=0.28, wave=wave))
        events.write(MarkEvent(t=7.0, label="engine one killed"), RequestEvent(t=7.1, outcome="failed"))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_page_is_drawn_from_recorded_events(recorded: Path, tmp_path: Path, ending: str):
    out = tmp_path / f"page.{ending}"
    assert main([str(recorded), "-o", str(out)]) == 0
    assert out.stat().st_size > 10_000


def test_what_cannot_be_drawn_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"event": "of a later version", "t": 1}\n')
    assert main([str(empty), "-o", str(tmp_path / "x.png")]) == 2
    assert "no loads" in capsys.readouterr().err
    empty.write_text('{"event": "load", "t": "soon"}\n')
    assert main([str(empty), "-o", str(tmp_path / "x.png")]) == 2
    assert "empty.jsonl:1" in capsys.readouterr().err


def test_variants_of_two_groups_are_drawn_apart(tmp_path: Path):
    path, out = tmp_path / "run.jsonl", tmp_path / "page.svg"
    with EventWriter(path) as events:
        for variant in ("dense: openmint", "dense: stock", "experts: openmint"):
            for place in range(3):
                events.write(RequestEvent(ttft_s=0.1 * place + 0.1, is_cold=True, variant=variant))
    assert main([str(path), "-o", str(out)]) == 0
    assert {"dense", "experts"} == {group_of(request.variant) for request in read_recording([path]).requests}


def test_loads_that_overlap_lie_in_lanes_of_their_own():
    one, two, three = load(0, 1, 2, 3, 4), load(1, 2, 3, 4, 5), load(4.5, 5, 6, 7, 8)
    (lanes,) = lanes_of([one, two, three])
    assert lanes.lanes == 2
    assert {bar.lane for bar in lanes.bars if bar.from_t >= 4.5} == {0}
    assert [(bar.phase, bar.from_t, bar.to_t) for bar in bars_of(one, 0)] == [
        ("queue", 0, 1), ("stage", 1, 2), ("staged", 2, 3), ("attach", 3, 4),
    ]  # fmt: skip


def test_a_stock_load_is_one_bar_and_a_load_that_failed_ends_where_it_failed():
    assert [bar.phase for bar in bars_of(LoadEvent(t=0, resident_t=1.3), 0)] == ["attach"]
    failed = LoadEvent(t=0, placed_t=1, ended_t=2, outcome="failed")
    assert [(bar.phase, bar.to_t) for bar in bars_of(failed, 0)] == [("queue", 1), ("stage", 2)]


def test_depth_follows_from_loads():
    times, depth = waiting_over_time([load(0, 2, 3, 3, 4), load(1, 5, 6, 6, 7)])
    assert (times, depth) == ([0, 1, 2, 5], {"interactive": [1, 2, 1, 0]})


def test_a_staircase_is_the_median_of_its_waves_place_by_place(recorded: Path):
    ours, stock = staircases(read_recording([recorded]).requests)
    assert (ours.variant, len(ours.waves), len(ours.median)) == ("openmint", 5, 8)
    assert stock.median[-1] - stock.median[0] > ours.median[-1] - ours.median[0]


def test_traces_become_events():
    def span(name: str, own: str, parent: str | None, from_ms: int, to_ms: int, **attributes: str | bool) -> SpanRecord:
        return SpanRecord(
            trace="t", span=own, parent=parent, name=name, started_ns=from_ms * 10**6, ended_ns=to_ms * 10**6,
            attributes=dict(attributes),
        )  # fmt: skip

    run, request, found = events_of(
        [
            span("gateway.request", "a", None, 1000, 1500, was_cold=True, outcome="answered", policy="acme/tone"),
            span("gateway.first_token", "f", "a", 1250, 1300),
            span("scheduler.load", "b", "a", 1010, 1200, engine="one", load_class="rollout"),
            span("scheduler.queue", "c", "b", 1010, 1020),
            span("scheduler.stage", "d", "b", 1020, 1100),
            span("scheduler.attach", "e", "b", 1110, 1190),
        ]
    )
    assert isinstance(run, RunEvent)
    assert isinstance(request, RequestEvent)
    assert isinstance(found, LoadEvent)
    assert (request.ttft_s, request.is_cold) == (pytest.approx(0.3), True)
    assert (found.t, found.placed_t, found.staged_t, found.attaching_t, found.resident_t) == pytest.approx(
        (0.01, 0.02, 0.1, 0.11, 0.2)
    )
    assert (found.engine, found.load_class) == ("one", "rollout")


async def test_depth_is_sampled_while_a_run_goes_on(tmp_path: Path):
    path = tmp_path / "run.jsonl"
    seen = {"loads": [{"load_class": "prefetch", "phase": "waiting"}, {"load_class": "rollout", "phase": "staging"}]}

    async def look() -> dict[str, Any] | None:
        return seen

    with EventWriter(path) as writer:
        async with depth_recorded(look, writer, time.monotonic(), every_s=0.01):
            await asyncio.sleep(0.05)
    depths = read_recording([path]).depths
    assert len(depths) >= 2
    assert (depths[0].waiting, depths[0].under_way) == ({"prefetch": 1}, 1)
