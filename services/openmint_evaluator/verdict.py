"""From the lines of a gate to eligible or rejected. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from openmint_evaluator.checks import Check

PROOFS_OF_IDENTITY = ("parity_mean", "serving_against_the_base_model")
"""At least one must hold, or nobody has shown that the engine answers with this revision at all."""

NO_OP_PROOFS = ("parity_mean", "serving_mean")


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reasons` are sentences: each rule that failed, or what the acceptance rests on."""

    passed: bool
    reasons: tuple[str, ...]


def decide(checks: Sequence[Check], is_no_op: bool = False) -> Verdict:
    """Rejected if any line fails, or if no line proves who answers; else eligible.

    A line that is `too weak to tell` or `not checked` decides nothing by itself.
    """
    failed = tuple(check.words for check in checks if check.outcome == "fails")
    if failed:
        return Verdict(False, failed)
    proofs = NO_OP_PROOFS if is_no_op else PROOFS_OF_IDENTITY
    proven = [check.words for check in checks if check.name in proofs and check.outcome == "holds"]
    if not proven:
        weak = [check.words for check in checks if check.outcome == "too weak to tell"]
        return Verdict(False, ("nothing proves that the engine answers with this revision", *weak))
    gained = [check.words for check in checks if check.name == "gain_over_base"]
    return Verdict(True, (*proven, *gained))


def could_not_evaluate(tries: int, cause: str) -> Verdict:
    """For a revision whose tries are used up: nobody could say, so it is not eligible."""
    return Verdict(False, (f"could not be evaluated (tries: {tries}); the last one ended with: {cause}",))
