import pytest

from load.clients.records import Call, Outcome
from load.report import ReportBuilder
from load.scenarios.decode_guard import NAMES
from load.scenarios.decode_guard import judge as judge_guard
from load.scenarios.one_missing import Round
from load.scenarios.one_missing import judge as judge_missing
from load.stack.counters import EngineCounters, total
from load.stack.policies import Policy
from load.waves.guard import Window, common_gaps
from load.waves.wave import Wave


def outcome(*token_s: float, error: str = "") -> Outcome:
    first = token_s[0] if token_s else None
    call = Call(Policy("t0", "p0"), "say", len(token_s))
    return Outcome(call, 0.0, 0.0, first, max(token_s, default=0.0), token_s, len(token_s), 200, error=error)


def test_what_a_load_adds_is_the_longer_makespan_shared_out() -> None:
    wave = Wave(tuple(outcome(t) for t in (0.2, 0.4)), tuple(outcome(t) for t in (0.1, 0.3)))
    assert wave.load_ms == pytest.approx(50.0)
    assert wave.cold_p95_s == pytest.approx(0.4) and wave.faults == 0


def test_only_gaps_while_all_streams_run_count() -> None:
    early, late = outcome(0.0, 1.0, 2.0, 3.0), outcome(1.0, 2.0, 3.0, 4.0)
    assert common_gaps([early, late]) == [1.0, 1.0, 1.0, 1.0]
    assert common_gaps([early, outcome()]) == []


def test_counters_are_subtracted_and_summed() -> None:
    before, after = EngineCounters(1, 2, 3, 4), EngineCounters(2, 4, 6, 8)
    assert after - before == before
    assert total({"one": before, "two": before}) == after


def _missing(stages: int, attaches: int, error: str = "") -> bool:
    builder = ReportBuilder("one-missing", is_quick=True, seed=0)
    done = {"one": EngineCounters(stages, attaches), "two": EngineCounters()}
    judge_missing([Round((outcome(1.0, error=error),), done)], builder)
    return builder.build().holds


def test_one_missing_holds_with_one_stage_and_one_attach_alone() -> None:
    assert _missing(1, 1)
    assert not _missing(2, 1)
    assert not _missing(1, 2)
    assert not _missing(0, 0)
    assert not _missing(1, 1, error="lost: x")


def _guard(attaching_ms: float) -> bool:
    builder = ReportBuilder("decode-guard", is_quick=True, seed=0)
    quiet, disturbed = Window((40.0,) * 100, 0, 0), Window((attaching_ms,) * 100, 24, 0)
    windows = {side: {name: [quiet if name == "quiet" else disturbed] for name in NAMES} for side in ("ours", "stock")}
    judge_guard("dense", windows, builder)
    return builder.build().holds


def test_decode_guard_holds_below_its_bound_alone() -> None:
    assert _guard(45.0)
    assert not _guard(47.0)
