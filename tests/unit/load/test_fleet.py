import json

import numpy as np
import pytest

from load.fleet.decisions import DecisionBench
from load.fleet.engine import EngineShape
from load.fleet.fit import fit, read_loads
from load.fleet.night import Night, NightPlan
from load.fleet.popularity import LARGEST_SHARE, poisson_arrivals, popularity
from load.fleet.routers import ROUTERS, Routed
from load.fleet.scheduled import Scheduled
from load.fleet.waves import PACKED, STOCK, makespan_bound_s, run_wave
from openmint_scheduler.core import LoaderScheduler


def plan(seconds=6.0, deaths=1):
    shares = popularity(1000, 0)
    return NightPlan(
        engines=8, joining=1, deaths=deaths, restart_s=1.5, shape=EngineShape(capacity=24),
        arrivals=poisson_arrivals(shares, 60.0, seconds, 0), policies=1000, mean_service_s=0.5, counted_from_s=2.0,
        ends_s=seconds, seed=0,
    )  # fmt: skip


def test_popularity_is_that_of_the_published_head():
    shares = np.sort(popularity(200_000, 0))[::-1]
    assert shares.sum() == pytest.approx(1.0)
    assert shares[0] <= 1.01 * LARGEST_SHARE
    assert 0.8 < shares[:2000].sum() < 0.95, "one in a hundred takes nearly nine tenths"


@pytest.mark.parametrize("name", [*ROUTERS, "ours"])
def test_every_way_answers_the_same_night_although_engines_die(name):
    way = Scheduled(LoaderScheduler()) if name == "ours" else Routed(ROUTERS[name], 0)
    found = Night(plan(), way).run().figures()
    again = Scheduled(LoaderScheduler()) if name == "ours" else Routed(ROUTERS[name], 0)
    assert found.failed == 0
    assert found.answered > 0.7 * found.requests
    assert 0 < found.loads_per_1000 <= 1050
    assert Night(plan(), again).run().figures() == found, "the same seed gives the same night"


def test_a_decision_is_timed_with_every_engine_full():
    bench = DecisionBench(engines=60, capacity=32, policies=10_000, seed=0)
    bench.fill()
    cost = bench.run(50)
    assert cost.loaded >= 45
    assert 0 < cost.asked_us < cost.decided_us < cost.all_us


@pytest.mark.parametrize("timings", [STOCK, PACKED])
def test_a_wave_on_one_engine_comes_near_its_bound(timings):
    result = run_wave(16, 1, timings)
    assert (result.errors, result.loads) == (0, 16)
    assert result.makespan_s <= 1.1 * makespan_bound_s(16, 1, timings)


def test_timings_are_found_in_the_loads_they_made():
    lines = [
        json.dumps({"stage_ms": 25.0, "attach_ms": 40.0 + 7.0 * batch, "batch": batch, "wait_ms": 100.0})
        for batch in (1, 2, 3, 8)
        for _ in range(batch)
    ]
    lines.append(json.dumps({"stage_ms": 0.0, "attach_ms": 900.0, "batch": 8, "wait_ms": 900.0}))  # It stalled.
    timings = fit(read_loads(lines))
    assert timings.stage_s == pytest.approx(0.025)
    assert timings.gap_s == pytest.approx(0.04)
    assert timings.attach_s == pytest.approx(0.007)


def test_a_line_that_is_no_load_is_named():
    with pytest.raises(ValueError, match="line 1"):
        read_loads(['{"stage_ms": 1}'])
