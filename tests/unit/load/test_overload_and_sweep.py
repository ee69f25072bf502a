"""What overload and sweep make of what they saw."""

from load.clients.records import Call, Outcome
from load.report import LoadReport, ReportBuilder
from load.scenarios import overload, sweep
from load.scenarios.overload import DEADLINE_S, Overloaded
from load.scenarios.sweep import SAMPLES, OfSize
from load.stack.policies import Policy

CALL = Call(Policy("t0", "p0"), "x", 4)


def answered(wait_s: float) -> Outcome:
    return Outcome(CALL, 0.0, 0.0, wait_s, wait_s + 1, (), 4, 200)


def refused(after_s: float, retry_after_s: float | None = 3.0) -> Outcome:
    return Outcome(CALL, 0.0, 0.0, None, after_s, (), 0, 429, retry_after_s, error="overloaded: full")


def overload_report(outcomes: list[Outcome], gateway_mib: tuple[float, ...] = (100.0,) * 30) -> LoadReport:
    report = ReportBuilder("overload", True, 0)
    overload.tell(Overloaded(8.0, outcomes, gateway_mib, 0.2), report)
    return report.build()


def failing(report: LoadReport) -> list[str]:
    return [check.name for check in report.checks if not check.holds]


def test_fast_refusals_and_kept_deadlines_hold() -> None:
    assert failing(overload_report([*[answered(3.0)] * 50, *[refused(0.01)] * 100])) == []


def test_an_admitted_request_that_waits_too_long_or_breaks_counts_against_the_deadline() -> None:
    late = overload_report([*[answered(3.0)] * 90, *[answered(DEADLINE_S + 1)] * 10, refused(0.01)])
    assert failing(late) == [f"admitted requests with a first token within {DEADLINE_S:g} s"]
    broken = Outcome(CALL, 0.0, 0.0, None, 1.0, (), 0, 500, error="broken: gone")
    assert "errors" in failing(overload_report([answered(3.0), broken, refused(0.01)]))


def test_slow_refusals_and_those_without_a_time_fail() -> None:
    report = overload_report([answered(1.0), *[refused(0.01)] * 18, refused(0.4), refused(0.4, None)])
    assert failing(report) == ["refusal p95, s", "refusal p99, s", "refusals that say when to come back"]


def test_a_gateway_that_grows_fails() -> None:
    growing = tuple(100.0 + 2 * second for second in range(30))
    assert failing(overload_report([answered(1.0), refused(0.01)], growing)) == ["growth of the gateway's memory, MiB"]


def sweep_report(cold_ms: tuple[float, float], missing: int = 0) -> LoadReport:
    found = {
        size: OfSize([(ms / 1e3,) * SAMPLES], [(0.05,) * SAMPLES], [SAMPLES - missing])
        for size, ms in zip((1_000, 10_000), cold_ms, strict=True)
    }
    report = ReportBuilder("sweep", True, 0)
    sweep.tell(found, report)
    return report.build()


def test_flat_latencies_hold_and_growing_ones_do_not() -> None:
    assert failing(sweep_report((100.0, 115.0))) == []
    assert failing(sweep_report((100.0, 130.0))) == ["cold p95, 10,000 over 1,000 adapters"]


def test_one_sample_without_an_answer_fails() -> None:
    assert len(failing(sweep_report((100.0, 100.0), missing=1))) == 2
