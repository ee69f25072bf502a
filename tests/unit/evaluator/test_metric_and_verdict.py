import pytest

from openmint.events import EvaluationSpec
from openmint_evaluator.checks import Check, Outcome
from openmint_evaluator.comparison import RowScore
from openmint_evaluator.metric import ScoredRows, metric_checks
from openmint_evaluator.verdict import could_not_evaluate, decide


def accuracy(subject: str, right: int, rows: int = 100) -> ScoredRows:
    return ScoredRows(subject, [RowScore(1.0)] * right + [RowScore(0.0)] * (rows - right))


def nats(subject: str, per_token: float) -> ScoredRows:
    return ScoredRows(subject, [RowScore(per_token * tokens, float(tokens)) for tokens in (3, 5, 8, 4)])


def spec(gain: float = 0.08, loss: float | None = 0.02, scorer: str = "label") -> EvaluationSpec:
    return EvaluationSpec.model_validate(
        {
            "scorer": scorer,
            "labels": [" good", " bad"],
            "min_gain_over_base": gain,
            "max_loss_against_production": loss,
        }
    )


@pytest.mark.parametrize(
    ("ours", "production", "rules", "failing"),
    [
        (80, None, spec(), []),
        (70, None, spec(), ["gain_over_base"]),
        (80, 81, spec(), []),
        (80, 90, spec(), ["loss_against_production"]),
        (80, 90, spec(loss=None), []),
        (40, 90, spec(), ["gain_over_base", "loss_against_production"]),
        (63, None, spec(gain=0.0), []),
        (62, None, spec(gain=0.0), ["gain_over_base"]),
    ],
)
def test_rules_of_the_job_decide(ours: int, production: int | None, rules: EvaluationSpec, failing: list[str]) -> None:
    in_production = None if production is None else accuracy("production", production)
    checks = metric_checks(
        rules, True, "share of rows right", accuracy("revision 2", ours), accuracy("the base", 63), in_production
    )
    assert [check.name for check in checks if check.outcome == "fails"] == failing


def test_lower_loss_counts_as_gain() -> None:
    rules = spec(gain=0.5, loss=0.1, scorer="loss")
    checks = metric_checks(rules, False, "nats", nats("revision 2", 1.2), nats("the base", 2.0), nats("prod", 1.15))
    assert [check.outcome for check in checks] == ["holds", "holds"]
    worse = metric_checks(rules, False, "nats", nats("revision 2", 1.6), nats("the base", 2.0), nats("prod", 1.15))
    assert [check.outcome for check in worse] == ["fails", "fails"]


def test_words_give_scores_errors_and_significance() -> None:
    (check, _) = metric_checks(spec(), True, "share", accuracy("revision 2", 85), accuracy("the base", 60), None)
    for part in ("revision 2 scores 0.85 ±", "100 held-out rows", "the base 0.6", "significant", "McNemar"):
        assert part in check.words


def test_score_that_is_no_number_fails() -> None:
    broken = ScoredRows("revision 2", [RowScore(float("nan"), 3.0), RowScore(1.0, 3.0)])
    base = ScoredRows("the base", [RowScore(1.0, 3.0), RowScore(1.0, 3.0)])
    checks = metric_checks(spec(0.0, scorer="loss"), False, "nats", broken, base, None)
    assert checks[0].outcome == "fails"


def line(name: str, outcome: Outcome) -> Check:
    return Check(name=name, outcome=outcome, words=f"{name} said")


@pytest.mark.parametrize(
    ("lines", "is_no_op", "passed", "reason"),
    [
        ([line("parity_mean", "holds")], False, True, "parity_mean said"),
        ([line("serving_against_the_base_model", "holds")], False, True, "serving_against_the_base_model said"),
        ([line("parity_mean", "holds"), line("gain_over_base", "fails")], False, False, "gain_over_base said"),
        ([line("parity_mean", "holds"), line("gain_over_base", "holds")], False, True, "parity_mean said"),
        ([line("parity_mean", "holds"), line("serving_against_x", "too weak to tell")], False, True, "parity"),
        ([line("serving_against_the_base_model", "too weak to tell")], False, False, "nothing proves"),
        ([line("parity_mean", "not checked"), line("serving_mean", "holds")], False, False, "nothing proves"),
        ([line("parity_mean", "not checked"), line("serving_mean", "holds")], True, True, "serving_mean said"),
        ([], False, False, "nothing proves"),
    ],
)
def test_verdict_follows_from_the_lines(lines: list[Check], is_no_op: bool, passed: bool, reason: str) -> None:
    verdict = decide(lines, is_no_op)
    assert verdict.passed is passed
    assert reason in verdict.reasons[0]


def test_used_up_tries_reject_and_say_so() -> None:
    verdict = could_not_evaluate(5, "no engine of pool gate-fp32 is alive")
    assert not verdict.passed
    assert "could not be evaluated (tries: 5)" in verdict.reasons[0]
    assert "gate-fp32" in verdict.reasons[0]
