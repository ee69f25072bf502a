"""Two revisions scored on the same rows: the difference, its standard error, and how likely chance explains it."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

BOOTSTRAP_ROUNDS = 1000
"""Gives a standard error good to about 2 %."""


@dataclass(frozen=True, slots=True)
class RowScore:
    """One row's part: `value` over `weight` (1 row, or nats over completion tokens)."""

    value: float
    weight: float = 1.0


def total_score(rows: Sequence[RowScore]) -> float:
    """Sum of values over sum of weights. Raises: ValueError when nothing was scored."""
    weight = sum(row.weight for row in rows)
    if weight <= 0:
        raise ValueError("no rows to score")
    return sum(row.value for row in rows) / weight


@dataclass(frozen=True, slots=True)
class Comparison:
    """`gain` > 0 means that the first is better, whichever way the scorer counts."""

    gain: float
    standard_error: float
    p_value: float
    method: str
    rows: int

    @property
    def is_significant(self) -> bool:
        """Whether chance alone would show such a difference in less than one case in twenty."""
        return self.p_value < 0.05


def compare(ours: Sequence[RowScore], theirs: Sequence[RowScore], higher_is_better: bool, seed: int = 0) -> Comparison:
    """Compare row by row: exact McNemar test when rows are right or wrong, else a paired bootstrap.

    Raises: ValueError when the rows are not the same ones.
    """
    if len(ours) != len(theirs) or any(a.weight != b.weight for a, b in zip(ours, theirs, strict=False)):
        raise ValueError("the two were not scored on the same rows")
    sign = 1.0 if higher_is_better else -1.0
    gain = sign * (total_score(ours) - total_score(theirs))
    differences = [sign * (a.value - b.value) for a, b in zip(ours, theirs, strict=True)]
    weights = [row.weight for row in ours]
    if all(w == 1.0 for w in weights) and all(row.value in (0.0, 1.0) for row in (*ours, *theirs)):
        better = sum(d > 0 for d in differences)
        worse = sum(d < 0 for d in differences)
        return Comparison(gain, _mean_error(differences), mcnemar_exact(better, worse), "McNemar, exact", len(ours))
    error, p_value = _paired_bootstrap(differences, weights, gain, random.Random(seed))
    return Comparison(gain, error, p_value, f"paired bootstrap, {BOOTSTRAP_ROUNDS} rounds", len(ours))


def mcnemar_exact(better: int, worse: int) -> float:
    """Two-sided chance of so uneven a split of the rows that changed, if better and worse were equally likely."""
    changed = better + worse
    if changed == 0:
        return 1.0
    tail = sum(math.comb(changed, k) for k in range(min(better, worse) + 1)) / 2**changed
    return min(1.0, 2 * tail)


def standard_error(rows: Sequence[RowScore], seed: int = 0) -> float:
    """Of `total_score`, by rows."""
    if all(row.weight == 1.0 for row in rows):
        return _mean_error([row.value for row in rows])
    return _paired_bootstrap([r.value for r in rows], [r.weight for r in rows], 0.0, random.Random(seed))[0]


def _mean_error(values: Sequence[float]) -> float:
    count = len(values)
    if count < 2:
        return math.inf
    mean = sum(values) / count
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1) / count)


def _paired_bootstrap(
    differences: Sequence[float], weights: Sequence[float], gain: float, generator: random.Random
) -> tuple[float, float]:
    """Standard error and two-sided p-value of the weighted mean difference, rows drawn with replacement."""
    count = len(differences)
    if count < 2:
        return math.inf, 1.0
    draws: list[float] = []
    for _ in range(BOOTSTRAP_ROUNDS):
        chosen = generator.choices(range(count), k=count)
        draws.append(sum(differences[i] for i in chosen) / sum(weights[i] for i in chosen))
    mean = sum(draws) / len(draws)
    error = math.sqrt(sum((d - mean) ** 2 for d in draws) / (len(draws) - 1))
    opposite = sum(d <= 0 for d in draws) if gain > 0 else sum(d >= 0 for d in draws)
    return error, min(1.0, 2 * (opposite + 1) / (BOOTSTRAP_ROUNDS + 1))
