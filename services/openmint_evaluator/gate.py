"""The rules by which an engine's logprobs are accepted as those of one revision. Pure.

Two stages: in fp32 the engine must agree with stock PEFT (parity) and differ from the base (applied). In the serving
engine's own dtype a paired test must tell the revision from every named alternative. Raw logprobs throughout.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from openmint_evaluator.agreement import NOISE_FLOOR, TokenLogprobs, measure_agreement
from openmint_evaluator.attribution import DECISIVE_NATS, Decision, PairedTest, closest, noise_scale, paired_test
from openmint_evaluator.checks import Check, Outcome, at_least, at_most, figure, not_checked

PARITY_MAX = 1e-3
PARITY_MEAN = 1e-4
"""Nats. Ordinary adapters measure 1e-4 and 1e-5 in fp32; wrong weights are orders of magnitude above.

The largest difference is one token's, and grows with what the adapter does: at a mean effect of 4.2 nats one token of
515 measured 1.6e-3 on a correct engine. So its bound is PARITY_MAX times the mean effect where that is above one nat,
which stays three orders of magnitude below the effect; the mean's bound is fixed.
"""

APPLIED_OVER_NOISE = 10.0

SERVING_MEAN = 0.1
"""Nats. bf16 engines measure 0.04 to 0.065; catches an alternative that nobody named."""

BASE = "the base model"
HALF_STRENGTH = "this revision at half strength"
DOUBLE_STRENGTH = "this revision at double strength"


@dataclass(frozen=True, slots=True)
class Answers:
    """What one engine answered on the probes: the adapter's rows, and base rows that shared the batches."""

    adapter: TokenLogprobs
    base: TokenLogprobs


@dataclass(frozen=True, slots=True)
class Reference:
    """What stock PEFT in fp32 says on the same tokens: adapter on, adapter off, and the named alternatives."""

    right: TokenLogprobs
    base: TokenLogprobs
    alternatives: Mapping[str, TokenLogprobs]

    def named(self) -> dict[str, TokenLogprobs]:
        """Everything that may have answered in the revision's name, the base first."""
        return {BASE: self.base, **self.alternatives}


def engine_trouble(answers: Answers, reference: Reference, base_bound: float) -> str:
    """Why the engine itself, and not the revision, is wrong: its base rows are not the base's. Empty when it is well.

    A revision whose own rows are no numbers may have spoilt the base's as well, so that is told of the revision.
    """
    noise = measure_agreement(answers.base, reference.base)
    if measure_agreement(answers.adapter, reference.right).non_finite:
        return ""
    if noise.non_finite:
        return f"{noise.non_finite} logprobs of its base rows are no numbers"
    if noise.mean > base_bound:
        return f"its base rows differ from the base by {figure(noise.mean)} nats, more than {figure(base_bound)}"
    return ""


def parity_checks(answers: Answers, reference: Reference, is_no_op: bool) -> list[Check]:
    """The fp32 half of the gate."""
    agreement = measure_agreement(answers.adapter, reference.right)
    noise = measure_agreement(answers.base, reference.base)
    effect = measure_agreement(answers.adapter, answers.base)
    if agreement.non_finite or noise.non_finite:
        return [_non_finite("parity_finite", agreement.non_finite, noise.non_finite, agreement.tokens)]
    suspect = _suspect(answers, reference, noise.mean)
    strength = max(1.0, measure_agreement(reference.right, reference.base).mean)
    over = f"over {agreement.tokens} tokens, engine in fp32 against stock PEFT"
    checks = [
        at_most("parity_max", agreement.maximum, PARITY_MAX * strength, "nats", f"largest difference {over}", suspect),
        at_most("parity_mean", agreement.mean, PARITY_MEAN, "nats", f"mean difference {over}", suspect),
        at_most(
            "base_rows_mean",
            noise.mean,
            PARITY_MEAN,
            "nats",
            "mean difference of base rows that shared the batches",
            "the engine's base rows are not the base's",
        ),
    ]
    if is_no_op:
        return [*checks, not_checked("applied", "the manifest says that this revision changes nothing")]
    bound = APPLIED_OVER_NOISE * max(noise.mean, NOISE_FLOOR)
    return [
        *checks,
        at_least(
            "applied",
            effect.mean,
            bound,
            "nats",
            f"mean effect, adapter against base, beside a noise of {figure(noise.mean)}",
            "the base answers in the adapter's name, or the adapter changes nothing and its manifest does not say so",
        ),
    ]


def serving_checks(answers: Answers, reference: Reference, is_no_op: bool) -> list[Check]:
    """The serving half of the gate, in the serving engine's own dtype."""
    agreement = measure_agreement(answers.adapter, reference.right)
    noise = measure_agreement(answers.base, reference.base)
    if agreement.non_finite or noise.non_finite:
        return [_non_finite("serving_finite", agreement.non_finite, noise.non_finite, agreement.tokens)]
    suspect = _suspect(answers, reference, noise.mean)
    checks = [
        at_most(
            "serving_mean",
            agreement.mean,
            SERVING_MEAN,
            "nats",
            f"mean difference over {agreement.tokens} tokens, serving engine against stock PEFT",
            suspect,
        ),
        at_most(
            "serving_base_rows_mean",
            noise.mean,
            SERVING_MEAN,
            "nats",
            "mean difference of base rows that shared the serving engine's batches",
            "the engine's base rows are not the base's",
        ),
    ]
    if is_no_op:
        return [*checks, not_checked("serving_attribution", "a revision that changes nothing can't be told apart")]
    scale = noise_scale(noise.mean)
    tests = [
        paired_test(name, answers.adapter, reference.right, other, scale) for name, other in reference.named().items()
    ]
    return [*checks, *(_attribution_check(test, suspect) for test in tests)]


def _attribution_check(test: PairedTest, suspect: str) -> Check:
    measured = (
        f"evidence for this revision against {test.alternative} (mean difference {figure(test.effect)}): "
        f"{figure(test.evidence_nats)} nats, at least {figure(DECISIVE_NATS)} for an error below 1e-6"
    )
    explained: dict[Decision, str] = {
        "right": measured,
        "other": f"{measured}; {test.alternative} answers in its name",
        "neither": f"{measured}; the engine agrees with neither, {suspect}",
        "too weak to tell": f"{measured}; too weak to tell: the two are too alike on these tokens "
        f"({figure(test.expected_nats)} nats would be expected)",
    }
    outcomes: dict[Decision, Outcome] = {"right": "holds", "too weak to tell": "too weak to tell"}
    return Check(
        name=f"serving_against_{test.alternative.replace(' ', '_')}",
        outcome=outcomes.get(test.decision, "fails"),
        words=explained[test.decision],
        measured=test.evidence_nats,
        relation=">=",
        bound=DECISIVE_NATS,
        unit="nats",
    )


def _suspect(answers: Answers, reference: Reference, base_noise: float) -> str:
    """Whom the engine's adapter rows look like, in words."""
    candidates = {"this revision": reference.right, **reference.named()}
    nearest = closest(answers.adapter, candidates, noise_scale(base_noise))
    if nearest == "this revision":
        return "they are still nearest to this revision's own, of all that were compared"
    return f"the answers look like those of {nearest}"


def _non_finite(name: str, adapter: int, base: int, finite: int) -> Check:
    return Check(
        name=name,
        outcome="fails",
        words=f"non-finite logprobs: {adapter} of {adapter + finite} tokens of the adapter, {base} of the base rows "
        "that shared its batches are no numbers",
        measured=float(adapter + base),
        relation="<=",
        bound=0.0,
        unit="tokens",
    )
