"""Which rows are run, what they show, and that a finished row is never run again."""

from dataclasses import replace
from pathlib import Path

import pytest

from load.clients.records import Call, Outcome
from load.many_policies.figures import figures_of
from load.many_policies.plan import (
    CLOSED,
    HEAVY,
    LIGHT,
    OURS,
    SWITCHES,
    Contender,
    Extent,
    best_caps,
    extent,
    planned_rows,
)
from load.many_policies.rows import Row, RowBook, comma_separated, markdown
from load.many_policies.verdict import DENSE, judge, ratio
from load.report import ReportBuilder
from load.stack.policies import Policy
from openmint_gateway.settings import GatewaySettings
from openmint_scheduler.settings import SchedulerSettings

ROW = Row(
    base="dense",
    load=HEAVY.name,
    contender="ours",
    seed=0,
    offered=400,
    answered=380,
    refused_percent=5.0,
    errors=0,
    first_error="",
    ttft_p50_s=1.0,
    ttft_p95_s=4.0,
    ttft_p99_s=6.0,
    goodput_5_rps=8.0,
    goodput_10_rps=8.4,
    requests_rps=8.4,
    tokens_rps=100.0,
    loads_per_1000=200.0,
    slot_swaps_per_1000=150.0,
    distinct_answered=120,
    distinct_asked=130,
    refusal_p95_s=0.01,
    cpu_cores={"client": 0.1},
    load_average=2.0,
)
FULL = extent(is_quick=False, seed=0)


def row(contender: str, load: str = HEAVY.name, **figures: float) -> Row:
    return ROW.model_copy(update={"contender": contender, "load": load, **figures})


def outcome(number: int, *, wait_s: float, status: int = 200, error: str = "") -> Outcome:
    call = Call(Policy("t0", f"p{number}"), "x", 4)
    first_s = None if error else 100 + wait_s
    return Outcome(call, 100.0, 100.0, first_s, 100 + wait_s + 0.5, (), 0 if error else 4, status, error=error)


def test_a_finished_row_is_kept_and_found_by_the_next_run(tmp_path: Path) -> None:
    book = RowBook(tmp_path / "rows.json")
    book.capacity_rps["dense"] = 7.5
    book.add(ROW)
    again = RowBook(tmp_path / "rows.json")
    assert ROW.key in again
    assert again.rows() == [ROW]
    assert again.capacity_rps == {"dense": 7.5}


def test_contenders_alternate_and_caps_are_raced_under_overload_alone() -> None:
    rows = list(planned_rows("dense", FULL, RowBook()))
    first = [one.contender.name for one in rows if one.load == LIGHT and one.seed == 0]
    assert first == ["ours", "round-robin", "hash", "loaded"]
    capped = {one.load.name for one in rows if one.contender.cap}
    assert capped == {HEAVY.name, CLOSED.name}
    assert len({one.key for one in rows}) == len(rows)


def test_after_the_first_seed_each_peer_keeps_the_caps_it_did_best_with() -> None:
    book = RowBook()
    book.add(row("loaded+cap40", goodput_5_rps=5.0, goodput_10_rps=5.0))
    book.add(row("loaded+cap80", goodput_5_rps=2.0, goodput_10_rps=7.0))
    book.add(row("loaded+cap120", goodput_5_rps=1.0, goodput_10_rps=6.0))
    assert best_caps("dense", HEAVY, "loaded", FULL, book) == [40, 80]
    later = [one for one in planned_rows("dense", FULL, book) if one.seed == 1 and one.load == HEAVY]
    assert [one.contender.name for one in later if one.contender.rule == "loaded"] == [
        "loaded", "loaded+cap40", "loaded+cap80",
    ]  # fmt: skip


def test_a_bound_takes_the_strongest_peer_of_each_seed_and_the_median_over_seeds() -> None:
    book = RowBook()
    for seed, (ours, weak, strong) in enumerate([(8.0, 1.0, 4.0), (6.0, 1.0, 2.0), (9.0, 1.0, 9.0)]):
        for name, value in (("ours", ours), ("loaded+cap40", weak), ("round-robin+cap80", strong)):
            book.add(row(name, seed=seed, goodput_5_rps=value))
    bound = next(one for one in DENSE if one.load == HEAVY and one.what.startswith("goodput 5 s"))
    assert ratio(book, "dense", bound, (0, 1, 2)) == pytest.approx(2.0)
    assert ratio(book, "dense", bound, (0, 1, 2, 3)) is None


def test_bounds_without_rows_do_not_hold() -> None:
    report = ReportBuilder("many-policies", False, 0)
    judge(RowBook(), "dense", DENSE, FULL, report)
    built = report.build()
    assert len(built.checks) == len(DENSE) + 2
    assert not any(check.holds for check in built.checks)


def test_an_error_of_ours_fails_the_run() -> None:
    book = RowBook()
    book.add(row("ours", errors=1))
    report = ReportBuilder("many-policies", True, 0)
    judge(book, "dense", (), Extent((0,), 1.0, (), (), (HEAVY,), ()), report)
    assert not report.build().holds


def test_figures_count_waits_of_answers_and_keep_refusals_apart_from_errors() -> None:
    outcomes = [outcome(n, wait_s=float(n)) for n in range(1, 9)]
    outcomes += [outcome(9, wait_s=0.0, status=429, error="overloaded: full")]
    outcomes += [outcome(10, wait_s=0.0, status=500, error="broken: dead")]
    found = figures_of(outcomes, 100.0, 10.0, is_closed=False)
    assert (found.answered, found.errors, found.refused_percent) == (8, 1, pytest.approx(10.0))
    assert found.goodput_5_rps == pytest.approx(0.5)
    assert found.goodput_10_rps == pytest.approx(0.8)
    assert found.first_error == "500: broken: dead"
    assert found.distinct_answered == 8


def test_closed_clients_count_what_ended_within_the_window() -> None:
    outcomes = [outcome(1, wait_s=1.0), outcome(2, wait_s=20.0)]
    found = figures_of(outcomes, 100.0, 10.0, is_closed=True)
    assert found.requests_rps == pytest.approx(0.1)
    drained = figures_of([replace(one) for one in outcomes], 100.0, 10.0, is_closed=False)
    assert drained.requests_rps == pytest.approx(2 / 20.5)


def test_tables_have_a_line_per_row() -> None:
    assert len(comma_separated([ROW, ROW]).splitlines()) == 3
    assert markdown([ROW]).count("| ours |") == 1


def test_names_of_contenders_tell_rule_cap_and_missing_part() -> None:
    assert OURS.name == "ours"
    assert Contender("hash", 80).name == "hash+cap80"
    assert Contender("ours", without="grouping").name == "ours-without-grouping"


@pytest.mark.parametrize("part", sorted(SWITCHES))
def test_every_switch_is_a_setting_of_a_service_and_changes_it(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in SWITCHES[part].items():
        field = variable.removeprefix("OPENMINT_").lower()
        settings = GatewaySettings if field in GatewaySettings.model_fields else SchedulerSettings
        usual = getattr(settings(), field)
        monkeypatch.setenv(variable, value)
        assert getattr(settings(), field) != usual
