"""Does loading by a policy's own rhythm pay? The same hour with prediction on and off, in the simulated fleet.

Policies are asked for as Azure Functions are: a tenth of them by timers (gaps that vary by two per cent), the others at
random. Nothing else differs, so what is found decides whether the setting is on by default.
"""

from collections import Counter
from typing import TYPE_CHECKING

from load.report import ReportBuilder
from load.scenarios.contract import Options, Scenario

if TYPE_CHECKING:
    from load.fleet.engine import Request
    from load.fleet.scheduled import Scheduled

ENGINES = 4
POLICIES = 3_000
TIMED_SHARE = 0.1
JITTER = 0.02
RATE_RPS = 10.0
SHORTEST_PERIOD_S, LONGEST_PERIOD_S = 60.0, 900.0
MEAN_SERVICE_S = 0.5

COLD_BOUND = 0.9
"""On by default only if it spares every tenth cold request of timers …"""

LOADS_BOUND = 1.05
"""… and costs hardly any load more."""


def run(options: Options, report: ReportBuilder) -> None:
    """Both ways, the same arrivals."""
    import numpy as np

    from load.fleet.engine import EngineShape
    from load.fleet.night import Night, NightPlan
    from load.fleet.popularity import Arrivals, popularity
    from load.fleet.scheduled import Scheduled
    from load.fleet.tally import NightFigures
    from openmint_scheduler.core import LoaderScheduler
    from openmint_scheduler.limits import Limits

    seconds = 1800.0 if options.is_quick else 7200.0
    random = np.random.default_rng([options.seed, 7])
    timers = int(POLICIES * TIMED_SHARE)
    times_s: list[float] = []
    policies: list[int] = []
    for timer in range(timers):
        period_s = float(random.uniform(SHORTEST_PERIOD_S, LONGEST_PERIOD_S))
        at_s = float(random.uniform(0.0, period_s))
        while at_s < seconds:
            times_s.append(at_s + float(random.normal(0.0, JITTER * period_s)))
            policies.append(timer)
            at_s += period_s
    others = int(RATE_RPS * seconds) - len(times_s)
    shares = popularity(POLICIES - timers, options.seed)
    times_s += random.uniform(0.0, seconds, others).tolist()
    policies += (timers + random.choice(POLICIES - timers, others, p=shares)).tolist()
    order = np.argsort(np.array(times_s))
    arrivals = Arrivals(np.array(times_s)[order].clip(min=0.0), np.array(policies, np.int64)[order])
    plan = NightPlan(
        engines=ENGINES, joining=0, deaths=0, restart_s=20.0, shape=EngineShape(capacity=24), arrivals=arrivals,
        policies=POLICIES, mean_service_s=MEAN_SERVICE_S, counted_from_s=seconds / 3, ends_s=seconds, seed=options.seed,
    )  # fmt: skip
    figures: dict[str, NightFigures] = {}
    cold: dict[str, float] = {}
    for name, predicts in (("off", False), ("on", True)):
        seen: Counter[str] = Counter()
        way = _watched(Scheduled(LoaderScheduler(Limits(predicts=predicts))), timers, plan.counted_from_s, seen)
        figures[name] = Night(plan, way).run().figures()
        cold[name] = seen["cold"] / max(1, seen["asked"])
        report.measure(f"prediction {name}: cold requests of timers", "of requests", [cold[name]])
        report.measure(f"prediction {name}: hit rate of all", "of requests", [figures[name].hit_rate])
        report.measure(f"prediction {name}: loads per 1,000 requests", "loads", [figures[name].loads_per_1000])
    report.check_at_most("cold requests of timers, on over off", cold["on"] / cold["off"], COLD_BOUND)
    report.check_at_most(
        "loads, on over off", figures["on"].loads_per_1000 / figures["off"].loads_per_1000, LOADS_BOUND
    )
    report.note(
        f"{timers} of {POLICIES} policies come by timers of {SHORTEST_PERIOD_S:.0f} to {LONGEST_PERIOD_S:.0f} s; "
        f"{ENGINES} engines of {plan.shape.capacity} places; simulated"
    )


def _watched(way: "Scheduled", timers: int, counted_from_s: float, seen: Counter[str]) -> "Scheduled":
    """The way itself, with an eye on the requests of timers: did they have to wait for a load?"""
    ask = way.ask

    def watched(request: "Request") -> None:
        ask(request)
        if request.policy < timers and request.asked_s >= counted_from_s:
            seen["asked"] += 1
            seen["cold"] += request.was_cold

    way.ask = watched
    return way


PREDICTION = Scenario("prediction", "whether loading by a policy's own rhythm pays (simulated)", run)
