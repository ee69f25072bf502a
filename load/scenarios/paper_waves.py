"""The paper's waves with the paper's timings: 64 policies on one engine, and 2,300 on 36.

The paper loads strictly one after the other (64 distinct: cold p95 199.8 s against 21.4 s warm) and sizes a wave of
2,300 distinct policies at 36 engines.
"""

from load.report import ReportBuilder
from load.scenarios.contract import Options, Scenario

WAVES = ((64, 1), (2300, 36))
OVER_BOUND = 1.1


def run(options: Options, report: ReportBuilder) -> None:
    """Each wave with stock and with packed loads. Virtual time: the same in every run, on any machine."""
    from load.fleet.waves import PACKED, STOCK, makespan_bound_s, run_wave

    for kind, timings in (("stock loads", STOCK), ("packed loads", PACKED)):
        for policies, engines in WAVES:
            name = f"{policies} on {engines}, {kind}"
            result = run_wave(policies, engines, timings)
            bound_s = makespan_bound_s(policies, engines, timings)
            report.measure(f"{name}: makespan", "s", [result.makespan_s])
            report.check_at_most(f"{name}: over its bound", result.makespan_s / bound_s, OVER_BOUND, f"{bound_s:.2f} s")
            report.check_at_most(f"{name}: errors", float(result.errors), 0)
            report.check_at_most(f"{name}: loads", float(result.loads), policies)
    report.note("makespan: from the wave to the last policy's request in an engine; simulated engines, virtual time")


PAPER_WAVES = Scenario("paper-waves", "waves of 64 and 2,300 distinct policies with the paper's load times", run)
