"""The gateway's line against capped round robin, in simulated time: what its parts bring, and whom they cost.

A model and no measurement: the line is the real one, engines are two of the measured step cost, every adapter is on
both. `many-policies` is the race on real engines.
"""

from dataclasses import replace
from statistics import mean, quantiles
from typing import TYPE_CHECKING

from load.report import ReportBuilder
from load.scenarios.contract import Options, Scenario

if TYPE_CHECKING:
    from load.line_simulation.engines import Crowd, Seen
    from openmint_gateway.line import LineRules

CLIENTS = 230
CAPS = (20, 30, 40, 50, 60, 80)
BOUNDS_S = (5.0, 10.0)
SEEDS, QUICK_SEEDS = 6, 3
GOODPUT_RATIO = 1.3
"""What the race on real engines asks for at 230 clients."""

LIGHT_RPS, LIGHT_P99_RATIO = 6.0, 0.5


def run(options: Options, report: ReportBuilder) -> None:
    """All rows with the same seeds."""
    from load.line_simulation.engines import Crowd
    from openmint_gateway.forecast import Bounds
    from openmint_gateway.line import LineRules

    seeds = [options.seed + number for number in range(QUICK_SEEDS if options.is_quick else SEEDS)]
    crowd, whole = Crowd(clients=CLIENTS), LineRules()
    capped = {cap: _rows(crowd, seeds, cap=cap) for cap in CAPS}
    ours = _rows(crowd, seeds, whole)
    for bound_s in BOUNDS_S:
        cap, best = max(capped.items(), key=lambda row: mean(_goodputs(row[1], bound_s, crowd)))
        peer = report.measure(f"best cap ({cap}), within {bound_s:g} s", "req/s", _goodputs(best, bound_s, crowd))
        mine = report.measure(f"line, within {bound_s:g} s", "req/s", _goodputs(ours, bound_s, crowd))
        ratio = report.compare(f"line / best cap, within {bound_s:g} s", mine, peer)
        report.check_at_least(f"goodput within {bound_s:g} s over the best cap's", ratio.median, GOODPUT_RATIO)
        if bound_s == BOUNDS_S[-1]:
            theirs = report.measure("best cap, adapters answered", "adapters", [len(seen.adapters) for seen in best])
            answered = report.measure("line, adapters answered", "adapters", [len(seen.adapters) for seen in ours])
            report.check_at_least("adapters answered over the best cap's", answered.median / theirs.median, 1.0)
    kept = [len(seen.first_tokens_s) / (len(seen.first_tokens_s) + seen.late) for seen in ours]
    report.check_at_least("accepted requests that were answered", mean(kept), 0.95)
    parts = {
        "verdict": replace(whole, bounds=replace(Bounds(), is_verdict_early=False)),
        "grouping": replace(whole, coherent_adapters=0),
        "turns": replace(whole, adapter_turns=False),
        "deadline order": replace(whole, deadline_order=False),
    }
    for name, rules in parts.items():
        rows = _rows(crowd, seeds, rules)
        report.measure(f"without {name}, within 10 s", "req/s", _goodputs(rows, BOUNDS_S[-1], crowd))
        report.measure(f"without {name}, adapters answered", "adapters", [len(seen.adapters) for seen in rows])
    light = Crowd(arrivals_rps=LIGHT_RPS)
    peer = report.measure("light load, round robin p99", "s", [_p99(seen) for seen in _rows(light, seeds)])
    mine = report.measure("light load, line p99", "s", [_p99(seen) for seen in _rows(light, seeds, whole)])
    ratio = report.compare("light load, line / round robin p99", mine, peer)
    report.check_at_most("light load: p99 over round robin's", ratio.median, LIGHT_P99_RATIO)
    report.note("simulated time; a model of two engines, not a measurement")


def _rows(crowd: "Crowd", seeds: list[int], rules: "LineRules | None" = None, cap: int = 0) -> "list[Seen]":
    from load.line_simulation.engines import Run

    return [Run(crowd, seed, rules, cap).run() for seed in seeds]


def _goodputs(rows: "list[Seen]", bound_s: float, crowd: "Crowd") -> list[float]:
    window_s = crowd.seconds - crowd.warm_up_s
    return [sum(first_s <= bound_s for first_s in seen.first_tokens_s) / window_s for seen in rows]


def _p99(seen: "Seen") -> float:
    return quantiles(seen.first_tokens_s, n=100)[98]


FAIR_LINE = Scenario("fair-line", "the gateway's line against capped round robin, in simulated time", run)
