"""A thousand engines and a million policies: our way beside three that people use, on the same simulated night.

Everything is simulated but the scheduler's core. Shape and workload are fixed here; `load/fleet/` says what is
modelled.
"""

import gc
from collections.abc import Callable
from statistics import median

from load.report import ReportBuilder
from load.scenarios.contract import Options, Scenario

ENGINES = 1000
POLICIES = 1_000_000
RATE_PER_ENGINE_RPS = 10.0
MEAN_SERVICE_S = 0.9
"""Nine of sixteen running requests are taken on the mean: an engine has room, and a hot policy outgrows one engine."""

DEATHS = 40
JOINING = 10
RESTART_S = 20.0

LOADS_BOUND = 0.8
DECISIONS_PER_CPU_S = 20_000
COST_GROWTH_BOUND = 1.5
FEW_POLICIES = 10_000
DECISION_CAPACITY = 8
"""Where decisions are timed, so that ten thousand policies are more than there are places."""


def run(options: Options, report: ReportBuilder) -> None:
    """The night four times, then what a decision costs."""
    from load.fleet.engine import EngineShape
    from load.fleet.night import Night, NightPlan, Way
    from load.fleet.popularity import poisson_arrivals, popularity
    from load.fleet.routers import ROUTERS, Routed
    from load.fleet.scheduled import Scheduled
    from load.fleet.tally import NightFigures
    from openmint_scheduler.core import LoaderScheduler

    seconds, counted_from_s = (45.0, 30.0) if options.is_quick else (130.0, 100.0)
    shares = popularity(POLICIES, options.seed)
    plan = NightPlan(
        engines=ENGINES,
        joining=JOINING,
        deaths=DEATHS,
        restart_s=RESTART_S,
        shape=EngineShape(),
        arrivals=poisson_arrivals(shares, RATE_PER_ENGINE_RPS * ENGINES, seconds, options.seed),
        policies=POLICIES,
        mean_service_s=MEAN_SERVICE_S,
        counted_from_s=counted_from_s,
        ends_s=seconds,
        seed=options.seed,
    )
    found: dict[str, NightFigures] = {}
    scheduled = Scheduled(LoaderScheduler())
    ways: dict[str, Callable[[], Way]] = {
        name: lambda choose=choose: Routed(choose, options.seed) for name, choose in ROUTERS.items()
    }
    for name, make in {**ways, "ours": lambda: scheduled}.items():
        found[name] = Night(plan, make()).run().figures()
        _show(report, name, found[name])
        gc.collect()
    ours = found.pop("ours")
    best = min(found, key=lambda name: found[name].loads_per_1000)
    report.check_at_most(
        "loads, ours over the best of the three", ours.loads_per_1000 / found[best].loads_per_1000, LOADS_BOUND,
        f"best: {best}",
    )  # fmt: skip
    calmest = min(found, key=lambda name: found[name].worst_policy_p99_s)
    report.check_at_most(
        "worst policy's p99 wait, s", ours.worst_policy_p99_s, found[calmest].worst_policy_p99_s,
        f"the smallest of the three: {calmest}",
    )  # fmt: skip
    report.check_at_most("requests failed or refused, ours", float(ours.failed), 0)
    for kind, calls in sorted(scheduled.cost.calls.items()):
        report.measure(f"core, {kind}", "us", [scheduled.cost.cpu_ns[kind] / calls / 1e3])
    _decisions(options, report)
    report.note(
        f"waits are from the request to the moment its engine begins; {ENGINES} engines of {plan.shape.capacity} "
        f"places, {RATE_PER_ENGINE_RPS:.0f} requests/s each, {DEATHS} deaths; counted from {counted_from_s:.0f} s, "
        f"when every way has filled the engines; cut off by a death: {ours.cut_off} (ours)"
    )


def _show(report: ReportBuilder, name: str, figures: "object") -> None:
    from load.fleet.tally import NightFigures

    assert isinstance(figures, NightFigures)
    report.measure(f"{name}: loads per 1,000 requests", "loads", [figures.loads_per_1000])
    report.measure(f"{name}: hit rate", "of requests", [figures.hit_rate])
    report.measure(f"{name}: churn, loads of what left in 60 s", "of loads", [figures.churn])
    report.measure(f"{name}: busiest engine over mean", "x", [figures.busiest_over_mean])
    report.measure(f"{name}: wait p99", "s", [figures.wait_p99_s])
    report.measure(f"{name}: worst policy's p99 wait", "s", [figures.worst_policy_p99_s])
    report.measure(f"{name}: policies answered", "policies", [float(figures.distinct_policies)])
    report.measure(f"{name}: failed or refused", "requests", [float(figures.failed)])


def _decisions(options: Options, report: ReportBuilder) -> None:
    from load.fleet.decisions import COUNTED, DecisionBench

    decisions, rounds = (2000, 5) if options.is_quick else (5000, 9)
    few = DecisionBench(ENGINES, DECISION_CAPACITY, FEW_POLICIES, options.seed)
    many = DecisionBench(ENGINES, DECISION_CAPACITY, POLICIES, options.seed)
    few.fill()
    many.fill()
    gc.collect()
    gc.freeze()  # What lives for long is not looked through again: the service does the same.
    costs = [(few.run(decisions), many.run(decisions)) for _ in range(rounds)]
    gc.unfreeze()
    report.check_at_least(
        "loads done per decision asked for", min(cost.loaded for pair in costs for cost in pair) / decisions, 0.98
    )
    of_few = report.measure("a decision, 10^4 policies", "us", [cost.decided_us for cost, _ in costs])
    of_many = report.measure("a decision, 10^6 policies", "us", [cost.decided_us for _, cost in costs])
    report.measure("a decision's first answer (LoadAsked alone)", "us", [cost.asked_us for _, cost in costs])
    report.measure("with looks, heartbeats and ticks", "us", [cost.all_us for _, cost in costs])
    growth = report.compare("cost, 10^6 over 10^4 policies", of_many, of_few)
    report.check_at_least(
        "decisions per CPU-second: request in, commands out", 1e6 / median(cost.asked_us for _, cost in costs),
        DECISIONS_PER_CPU_S, "CPU of LoadAsked",
    )  # fmt: skip
    report.check_at_least(
        "decisions per CPU-second, to the end of the load", 1e6 / median(cost.decided_us for _, cost in costs),
        DECISIONS_PER_CPU_S, f"CPU of {', '.join(COUNTED)}",
    )  # fmt: skip
    report.check_at_most("cost, 10^6 over 10^4 policies", growth.median, COST_GROWTH_BOUND)


FLEET = Scenario("fleet", "1,000 simulated engines, 10^6 policies: ours beside three routers; decisions a second", run)
