import json
from pathlib import Path

import pytest

from load.__main__ import main
from load.report import ReportBuilder, render


def test_median_and_quartiles_speak_for_the_samples() -> None:
    builder = ReportBuilder("x", is_quick=True, seed=1)
    found = builder.measure("wait", "ms", [5.0, 1.0, 2.0, 3.0, 100.0])
    assert found.median == 3.0
    assert found.spread == (2.0, 5.0)
    assert builder.measure("few", "ms", [4.0, 2.0]).spread == (2.0, 4.0)


def test_ratio_is_taken_pair_by_pair() -> None:
    builder = ReportBuilder("x", is_quick=True, seed=1)
    ours, theirs = builder.measure("ours", "s", [1.0, 2.0, 4.0]), builder.measure("theirs", "s", [2.0, 4.0, 4.0])
    ratio = builder.compare("ours over theirs", ours, theirs)
    assert (ratio.median, ratio.spread, ratio.pairs) == (0.5, (0.5, 1.0), 3)
    with pytest.raises(ValueError, match="pairs"):
        builder.compare("unpaired", ours, builder.measure("one", "s", [1.0]))


@pytest.mark.parametrize(
    ("value", "bound", "relation", "holds"),
    [(1.0, 1.0, "<=", True), (1.1, 1.0, "<=", False), (1.0, 1.0, ">=", True), (float("nan"), 1.0, "<=", False),
     (None, 0.0, ">=", False)],
)  # fmt: skip
def test_bound_holds_or_not(value: float | None, bound: float, relation: str, holds: bool) -> None:
    builder = ReportBuilder("x", is_quick=True, seed=1)
    (builder.check_at_most if relation == "<=" else builder.check_at_least)("a", value, bound)
    report = builder.build()
    assert report.holds is holds
    assert ("DOES NOT HOLD" in render(report)) is not holds


def test_missing_peer_is_named_and_its_check_does_not_hold() -> None:
    builder = ReportBuilder("x", is_quick=True, seed=1)
    builder.check_at_most("fine", 1.0, 2.0)
    builder.miss_peer("other server", "not installable here", "ratio to other server", 1.5)
    report = builder.build()
    assert not report.holds
    assert "other server: not installable here" in render(report)


def test_report_without_checks_holds_nothing() -> None:
    assert not ReportBuilder("x", is_quick=True, seed=1).build().holds


def test_list_names_every_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "gate-errors" in capsys.readouterr().out


@pytest.mark.slow
def test_run_writes_json_with_checks_and_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "report.json"
    code = main(["gate-errors", "--quick", "--seed", "3", "--json", str(target)])
    body = json.loads(target.read_text())
    assert code == 0, capsys.readouterr().out
    assert body["machine"]["cores"] >= 1
    assert body["seed"] == 3
    assert {"name", "value", "bound", "holds"} <= set(body["checks"][0])
    assert all(check["holds"] for check in body["checks"])
