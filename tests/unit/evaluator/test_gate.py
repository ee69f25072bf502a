"""The rules of the gate on synthetic answers; every injected fault is named by the line that fails."""

import math
import random
from collections.abc import Callable, Sequence

import pytest

from openmint_evaluator.checks import Check
from openmint_evaluator.gate import (
    DOUBLE_STRENGTH,
    HALF_STRENGTH,
    PARITY_MEAN,
    Answers,
    Reference,
    engine_trouble,
    parity_checks,
    serving_checks,
)
from openmint_evaluator.verdict import decide

TOKENS = 512
PREVIOUS = "the revision in production"


def make_reference(effect: float, seed: int = 1) -> Reference:
    generator = random.Random(seed)
    base = [-generator.expovariate(0.4) for _ in range(TOKENS)]
    change = [generator.expovariate(1 / effect) * generator.choice((-1, 1)) for _ in range(TOKENS)]
    sibling = [c + generator.gauss(0, effect * 0.8) for c in change]
    return Reference(
        right=[b + c for b, c in zip(base, change, strict=True)],
        base=base,
        alternatives={
            PREVIOUS: [b + s for b, s in zip(base, sibling, strict=True)],
            HALF_STRENGTH: [b + c / 2 for b, c in zip(base, change, strict=True)],
            DOUBLE_STRENGTH: [b + c * 2 for b, c in zip(base, change, strict=True)],
        },
    )


def noisy(values: Sequence[float], spread: float, seed: int) -> list[float]:
    generator = random.Random(seed)
    return [value + generator.gauss(0, spread) for value in values]


def failing(checks: list[Check]) -> str:
    return " | ".join(check.words for check in checks if check.outcome == "fails")


def with_nan(values: Sequence[float]) -> list[float]:
    return [math.nan if i % 50 == 3 else value for i, value in enumerate(values)]


FAULTS: dict[str, tuple[Callable[[Reference], Sequence[float]], str]] = {
    "base answers": (lambda r: r.base, "the base model"),
    "sibling answers": (lambda r: r.alternatives[PREVIOUS], PREVIOUS),
    "half strength": (lambda r: r.alternatives[HALF_STRENGTH], "half strength"),
    "double strength": (lambda r: r.alternatives[DOUBLE_STRENGTH], "double strength"),
    "not a number": (lambda r: with_nan(r.right), "non-finite"),
}


def test_right_engine_passes_both_stages() -> None:
    reference = make_reference(0.15)
    exact = Answers(noisy(reference.right, 1e-5, 2), noisy(reference.base, 1e-5, 3))
    served = Answers(noisy(reference.right, 0.06, 4), noisy(reference.base, 0.06, 5))
    checks = parity_checks(exact, reference, is_no_op=False) + serving_checks(served, reference, is_no_op=False)
    assert failing(checks) == ""
    assert {check.outcome for check in checks} == {"holds"}
    assert decide(checks).passed


@pytest.mark.parametrize("fault", FAULTS)
def test_fp32_gate_rejects_and_names_the_fault(fault: str) -> None:
    answer, named = FAULTS[fault]
    reference = make_reference(0.15)
    answers = Answers(noisy(answer(reference), 1e-5, 2), noisy(reference.base, 1e-5, 3))
    checks = parity_checks(answers, reference, is_no_op=False)
    assert named in failing(checks)
    assert not decide(checks).passed


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("effect", [0.06, 0.2])
def test_serving_check_rejects_and_names_the_fault(fault: str, effect: float) -> None:
    answer, named = FAULTS[fault]
    reference = make_reference(effect)
    answers = Answers(noisy(answer(reference), 0.06, 2), noisy(reference.base, 0.06, 3))
    checks = serving_checks(answers, reference, is_no_op=False)
    assert named in failing(checks)
    assert not decide(checks).passed


def test_base_rows_that_carry_an_adapter_are_the_engines_fault() -> None:
    reference = make_reference(0.15)
    answers = Answers(noisy(reference.right, 1e-5, 2), noisy(reference.right, 1e-5, 3))
    assert "base rows are not the base's" in failing(parity_checks(answers, reference, is_no_op=False))
    assert "its base rows differ from the base by" in engine_trouble(answers, reference, PARITY_MEAN)
    spoilt = Answers(noisy(reference.right, 1e-5, 2), with_nan(reference.base))
    assert "of its base rows are no numbers" in engine_trouble(spoilt, reference, PARITY_MEAN)


def test_engine_is_not_blamed_for_a_revision_that_is_wrong() -> None:
    reference = make_reference(0.15)
    base = noisy(reference.base, 1e-5, 3)
    assert engine_trouble(Answers(reference.alternatives[PREVIOUS], base), reference, PARITY_MEAN) == ""
    assert engine_trouble(Answers(with_nan(reference.right), with_nan(base)), reference, PARITY_MEAN) == ""


def test_adapter_without_effect_is_rejected_unless_its_manifest_says_so() -> None:
    base = make_reference(0.1).base
    reference = Reference(right=base, base=base, alternatives={})
    answers = Answers(noisy(base, 1e-5, 2), noisy(base, 1e-5, 3))
    assert "changes nothing" in failing(parity_checks(answers, reference, is_no_op=False))
    checks = parity_checks(answers, reference, is_no_op=True)
    assert failing(checks) == ""
    assert decide(checks, is_no_op=True).passed


def test_too_weak_an_effect_passes_on_parity_but_never_on_the_serving_check_alone() -> None:
    reference = make_reference(0.003)
    exact = Answers(noisy(reference.right, 1e-5, 2), noisy(reference.base, 1e-5, 3))
    served = Answers(noisy(reference.right, 0.06, 4), noisy(reference.base, 0.06, 5))
    serving = serving_checks(served, reference, is_no_op=False)
    assert any(check.outcome == "too weak to tell" and "too weak to tell" in check.words for check in serving)
    assert decide(parity_checks(exact, reference, is_no_op=False) + serving).passed
    alone = decide(serving)
    assert not alone.passed
    assert "nothing proves" in alone.reasons[0]


def one_token_off(values: Sequence[float], by: float) -> list[float]:
    return [value + (by if i == 7 else 0.0) for i, value in enumerate(values)]


@pytest.mark.parametrize(("effect", "off", "fails"), [(0.2, 2e-3, True), (5.0, 2e-3, False), (5.0, 2e-2, True)])
def test_one_token_s_tolerance_grows_with_what_the_adapter_does(effect: float, off: float, fails: bool) -> None:
    reference = make_reference(effect)
    answers = Answers(adapter=one_token_off(reference.right, off), base=reference.base)
    assert ("largest difference" in failing(parity_checks(answers, reference, is_no_op=False))) is fails
