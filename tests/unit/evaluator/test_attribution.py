"""The paired test on synthetic logprobs with the noise that real bf16 engines showed."""

import math
import random

import pytest

from openmint_evaluator.agreement import measure_agreement
from openmint_evaluator.attribution import (
    DECISIVE_NATS,
    HALF_PRECISION_SCALE,
    PairedTest,
    closest,
    noise_scale,
    paired_test,
)

TOKENS = 512


def bf16_noise(generator: random.Random) -> float:
    """Mean 0.05 nats, p99 near 0.4, one token in some hundreds above 1: as measured between a bf16 engine and fp32."""
    spread = generator.choices((0.05, 0.2, 0.7), (0.93, 0.06, 0.01))[0]
    return generator.gauss(0, spread)


def effect_of(generator: random.Random, mean: float) -> list[float]:
    """Differences between two revisions: most tokens hardly move, some move a lot (Laplace)."""
    return [generator.expovariate(1 / mean) * generator.choice((-1, 1)) for _ in range(TOKENS)]


def run(generator: random.Random, effect: float, share: float, noise: float = 1.0) -> PairedTest:
    """Test an engine whose adapter acts with `share` of its strength (1: right, 0: the alternative itself)."""
    other = [-generator.expovariate(0.4) for _ in range(TOKENS)]
    change = effect_of(generator, effect)
    right = [o + c for o, c in zip(other, change, strict=True)]
    engine = [o + share * c + noise * bf16_noise(generator) for o, c in zip(other, change, strict=True)]
    return paired_test("the base model", engine, right, other, HALF_PRECISION_SCALE)


def test_synthetic_noise_is_like_the_measured_one() -> None:
    generator = random.Random(1)
    noise = [bf16_noise(generator) for _ in range(20_000)]
    agreement = measure_agreement(noise, [0.0] * len(noise))
    assert 0.035 < agreement.mean < 0.065
    assert 0.2 < agreement.p99 < 0.6
    assert agreement.maximum > 1.0


@pytest.mark.parametrize("effect", [0.05, 0.1, 0.2, 0.8])
def test_right_revision_is_told_from_the_base_and_from_siblings(effect: float) -> None:
    generator = random.Random(2)
    assert {run(generator, effect, share=1.0).decision for _ in range(15)} == {"right"}


@pytest.mark.parametrize("effect", [0.05, 0.1, 0.2, 0.8])
def test_another_revision_in_its_name_is_found_out(effect: float) -> None:
    generator = random.Random(3)
    assert {run(generator, effect, share=0.0).decision for _ in range(15)} == {"other"}


def test_halfway_is_undecided_against_the_base_and_found_out_when_it_is_named() -> None:
    generator = random.Random(4)
    decisions = [run(generator, 0.2, share=0.5).decision for _ in range(20)]
    assert decisions.count("right") < 10
    assert "neither" in decisions
    other = [0.0] * TOKENS
    right = effect_of(generator, 0.2)
    half = [value / 2 for value in right]
    for _ in range(20):
        engine = [value + bf16_noise(generator) for value in half]
        assert paired_test("half", engine, right, half, HALF_PRECISION_SCALE).decision == "other"
    assert paired_test("a", other, right, half, HALF_PRECISION_SCALE).decision == "other"


def test_effect_below_the_power_is_called_too_weak_and_not_decided() -> None:
    generator = random.Random(5)
    for share in (0.0, 1.0):
        tests = [run(generator, 0.004, share) for _ in range(10)]
        assert {test.decision for test in tests} == {"too weak to tell"}
        assert all(test.power_nats < DECISIVE_NATS for test in tests)


@pytest.mark.slow
def test_wrong_decisions_are_far_rarer_than_the_bound_allows_at_a_loose_threshold() -> None:
    """exp(-c) bounds the error for every c; at c = 3 there are enough errors to count (bound 5 %)."""
    generator = random.Random(6)
    runs = [run(generator, effect, share=0.0) for effect in (0.004, 0.01) for _ in range(60)]
    assert sum(test.evidence_nats >= 3 for test in runs) / len(runs) < math.exp(-3)


def test_evidence_is_near_what_was_expected_when_the_noise_is_normal() -> None:
    generator = random.Random(7)
    other = [0.0] * TOKENS
    right = effect_of(generator, 0.1)
    engine = [r + generator.gauss(0, HALF_PRECISION_SCALE) for r in right]
    test = paired_test("a", engine, right, other, HALF_PRECISION_SCALE)
    assert test.evidence_nats == pytest.approx(test.expected_nats, rel=0.15)
    assert test.power_nats < test.evidence_nats


def test_the_one_who_answers_is_named() -> None:
    generator = random.Random(8)
    candidates = {name: effect_of(generator, 0.1) for name in ("this", "base", "sibling")}
    engine = [value + bf16_noise(generator) for value in candidates["sibling"]]
    assert closest(engine, candidates, HALF_PRECISION_SCALE) == "sibling"


def test_scale_follows_the_precision_that_base_rows_show() -> None:
    assert noise_scale(1e-5) < noise_scale(0.05) == HALF_PRECISION_SCALE


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="against"):
        paired_test("a", [0.0], [0.0, 1.0], [0.0], 0.06)
