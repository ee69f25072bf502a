import random

import pytest

from openmint_evaluator.comparison import RowScore, compare, mcnemar_exact, standard_error, total_score


def right_or_wrong(generator: random.Random, share: float, rows: int) -> list[RowScore]:
    return [RowScore(float(generator.random() < share)) for _ in range(rows)]


def test_score_is_weighted_by_completion_tokens() -> None:
    assert total_score([RowScore(3.0, 1.0), RowScore(1.0, 3.0)]) == 1.0


def test_nothing_scored_is_no_score() -> None:
    with pytest.raises(ValueError, match="no rows"):
        total_score([])


def test_mcnemar_is_the_binomial_of_the_rows_that_changed() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(5, 5) == 1.0
    assert mcnemar_exact(10, 0) == pytest.approx(2 / 1024)
    assert mcnemar_exact(8, 2) == mcnemar_exact(2, 8) == pytest.approx(2 * (1 + 10 + 45) / 1024)


def test_a_clear_gain_in_accuracy_is_significant() -> None:
    generator = random.Random(1)
    against = compare(right_or_wrong(generator, 0.8, 420), right_or_wrong(generator, 0.6, 420), higher_is_better=True)
    assert against.is_significant
    assert against.method.startswith("McNemar")
    assert 0.12 < against.gain < 0.28
    assert against.standard_error == pytest.approx(0.031, abs=0.006)


def test_equal_models_are_rarely_called_different() -> None:
    generator = random.Random(2)
    found = [
        compare(right_or_wrong(generator, 0.7, 200), right_or_wrong(generator, 0.7, 200), higher_is_better=True)
        for _ in range(200)
    ]
    assert sum(against.is_significant for against in found) <= 16


def test_lower_loss_is_a_gain_with_a_bootstrap_error() -> None:
    generator = random.Random(3)
    base = [RowScore(generator.gauss(30, 8), 10.0) for _ in range(80)]
    ours = [RowScore(row.value - generator.gauss(3, 2), 10.0) for row in base]
    against = compare(ours, base, higher_is_better=False)
    assert against.gain == pytest.approx(0.3, abs=0.06)
    assert against.standard_error == pytest.approx(0.2 / 80**0.5, rel=0.25)
    assert against.is_significant
    assert compare(ours, base, higher_is_better=False) == against, "seeded: equal on every run"


def test_other_rows_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same rows"):
        compare([RowScore(1.0)], [RowScore(1.0), RowScore(0.0)], higher_is_better=True)
    with pytest.raises(ValueError, match="same rows"):
        compare([RowScore(1.0, 2.0)], [RowScore(1.0, 3.0)], higher_is_better=False)


def test_standard_error_of_a_share_is_the_binomial_one() -> None:
    rows = [RowScore(1.0)] * 84 + [RowScore(0.0)] * 36
    assert standard_error(rows) == pytest.approx((0.7 * 0.3 / 119) ** 0.5, rel=1e-6)
