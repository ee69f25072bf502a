"""Every loss against its formula and its closed-form gradient, written again here in plain numbers.

Nothing of the code under test is used to make the expected values: token by token, in Python floats.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from openmint_trainer.losses import LOSSES, LossInputs, distillation_advantages, find_loss, top_k_weights

ROWS = (5, 0, 4, 7)
LOW, HIGH = 0.8, 1.2


@dataclass(frozen=True)
class Case:
    """Some rows of samples as plain numbers, one list entry per position."""

    p: list[float]
    q: list[float]
    a: list[float]
    w: list[float]
    ref: list[float]
    mask: list[float] | None = None
    rows: tuple[int, ...] = ROWS

    def inputs(self, p: list[float] | None = None) -> LossInputs:
        def tensor(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float64)

        return LossInputs(
            logprobs=tensor(p or self.p).requires_grad_(),
            weights=tensor(self.w),
            sampler_logprobs=tensor(self.q),
            advantages=tensor(self.a),
            reference_logprobs=tensor(self.ref),
            sequence_mask=None if self.mask is None else tensor(self.mask),
            rows=self.rows,
        )

    def spans(self) -> list[range]:
        starts = [sum(self.rows[:i]) for i in range(len(self.rows))]
        return [range(start, start + n) for start, n in zip(starts, self.rows, strict=True)]

    def masked(self, span: range) -> list[int]:
        return [i for i in span if (self.w[i] if self.mask is None else self.mask[i])]


def random_case(seed: int = 0) -> Case:
    """16 tokens: ratios on all sides of the clip with advantages of both signs, zeros of both kinds."""
    rng = random.Random(seed)
    n = sum(ROWS)
    p = [rng.uniform(-4, -0.1) for _ in range(n)]
    log_ratios = [rng.choice((-1, 1)) * rng.uniform(0.02, 0.9) for _ in range(n)]
    a = [rng.gauss(0, 1) for _ in range(n)]
    w = [rng.uniform(0.2, 2.0) for _ in range(n)]
    log_ratios[0], a[0] = 0.9, -1.5  # r above the clip, A < 0: not clipped
    log_ratios[1], a[1] = 0.9, 1.5  # clipped
    log_ratios[2], a[2] = -0.9, -1.5  # clipped
    log_ratios[3], a[3] = -0.9, 1.5  # not clipped
    a[5] = 0.0
    q = [x - d for x, d in zip(p, log_ratios, strict=True)]
    ref = [x + rng.uniform(-1, 1) for x in p]
    for i in (4, 8, 15):  # Nothing is trained there, and what stands there is no number to count with.
        w[i], q[i], ref[i], a[i] = 0.0, -math.inf, -math.inf, math.nan
    return Case(p, q, a, w, ref)


def pairs_case() -> Case:
    case = random_case(1)
    rows = (5, 4, 4, 3)
    w = [x and (0.5 if i < 9 else 1.25) for i, x in enumerate(case.w)]
    return replace(case, w=w, rows=rows)


Expected = tuple[float, list[float]]


def clip(r: float, low: float, high: float) -> float:
    return min(max(r, low), high)


def per_token(case: Case, term: Callable[[float, float, float, float], tuple[float, float]]) -> Expected:
    """Sum of w * value(p, q, A) with gradients w * slope, over positions with a weight."""
    value, slopes = 0.0, [0.0] * len(case.p)
    for i, w in enumerate(case.w):
        if w:
            v, slope = term(case.p[i], case.q[i], case.a[i], case.ref[i])
            value += w * v
            slopes[i] = w * slope
    return value, slopes


def expect_cross_entropy(case: Case) -> Expected:
    return per_token(case, lambda p, q, a, ref: (-p, -1.0))


def expect_importance_sampling(case: Case) -> Expected:
    return per_token(case, lambda p, q, a, ref: (-math.exp(p - q) * a, -math.exp(p - q) * a))


def expect_ppo(case: Case) -> Expected:
    def term(p: float, q: float, a: float, ref: float) -> tuple[float, float]:
        r = math.exp(p - q)
        is_clipped = (a > 0 and r > HIGH) or (a < 0 and r < LOW)
        return (-clip(r, LOW, HIGH) * a, 0.0) if is_clipped else (-r * a, -r * a)

    return per_token(case, term)


def expect_cispo(case: Case) -> Expected:
    def term(p: float, q: float, a: float, ref: float) -> tuple[float, float]:
        weight = clip(math.exp(p - q), LOW, HIGH)
        return -weight * p * a, -weight * a

    return per_token(case, term)


def expect_dro(case: Case) -> Expected:
    beta = 0.05
    return per_token(case, lambda p, q, a, ref: (-(p * a - beta / 2 * (p - q) ** 2), -(a - beta * (p - q))))


def row_ratio(case: Case, span: range) -> float:
    positions = case.masked(span)
    return math.exp(sum(case.p[i] - case.q[i] for i in positions) / max(1, len(positions)))


def expect_gspo(case: Case, own_gradient: bool = False) -> Expected:
    low, high = 1 - 3e-4, 1 + 4e-4
    value, slopes = 0.0, [0.0] * len(case.p)
    for span in case.spans():
        s, positions = row_ratio(case, span), case.masked(span)
        for t in span:
            if not case.w[t]:
                continue
            a = case.a[t]
            is_clipped = (a > 0 and s > high) or (a < 0 and s < low)
            value -= case.w[t] * a * (clip(s, low, high) if is_clipped else s)
            if is_clipped:
                continue
            for u in (t,) if own_gradient else positions:
                slopes[u] -= case.w[t] * a * s / (1 if own_gradient else len(positions))
    return value, slopes


def expect_gspo_token(case: Case) -> Expected:
    return expect_gspo(case, own_gradient=True)


def expect_dpo(case: Case) -> Expected:
    beta = 0.1
    value, slopes = 0.0, [0.0] * len(case.p)
    spans = case.spans()
    for chosen, rejected in zip(spans[::2], spans[1::2], strict=True):
        weight = next(case.w[i] for i in chosen if case.w[i])
        gain = [sum(case.p[i] - case.ref[i] for i in case.masked(span)) for span in (chosen, rejected)]
        margin = beta * (gain[0] - gain[1])
        value += weight * math.log1p(math.exp(-margin))
        slope = weight * beta / (1 + math.exp(margin))
        for sign, span in ((-1, chosen), (1, rejected)):
            for i in case.masked(span):
                slopes[i] = sign * slope
    return value, slopes


EXPECTED: dict[str, Callable[[Case], Expected]] = {
    "cross_entropy": expect_cross_entropy,
    "importance_sampling": expect_importance_sampling,
    "ppo": expect_ppo,
    "cispo": expect_cispo,
    "dro": expect_dro,
    "gspo": expect_gspo,
    "gspo_token": expect_gspo_token,
    "dpo": expect_dpo,
}
HAS_STOPPED_GRADIENT = {"cispo", "gspo_token"}


def cases_of(name: str) -> list[Case]:
    if name == "dpo":
        return [pairs_case()]
    # A mask that leaves a trained position out and takes an untrained one with a true sampler logprob in.
    masked = random_case(2)
    mask = [1.0] * len(masked.p)
    mask[6] = 0.0
    q = [x - 0.1 if math.isinf(y) else y for x, y in zip(masked.p, masked.q, strict=True)]
    return [random_case(0), random_case(3), replace(masked, mask=mask, q=q)]


def ours(name: str, inputs: LossInputs, **config: float) -> Expected:
    output = find_loss(name)(inputs, config)
    (gradient,) = torch.autograd.grad(output.loss, inputs.logprobs)
    return float(output.loss.detach()), gradient.tolist()


def test_every_loss_has_its_formula_here() -> None:
    assert EXPECTED.keys() == LOSSES.keys()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_value_and_gradient_are_those_of_the_formula(name: str) -> None:
    for case in cases_of(name):
        value, slopes = ours(name, case.inputs())
        expected, expected_slopes = EXPECTED[name](case)
        assert value == pytest.approx(expected, rel=1e-12)
        assert slopes == pytest.approx(expected_slopes, rel=1e-11, abs=1e-14)
        assert any(slopes)


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - HAS_STOPPED_GRADIENT))
def test_the_gradient_is_the_slope_of_the_value(name: str) -> None:
    case, step = cases_of(name)[0], 1e-6
    _, slopes = ours(name, case.inputs())
    for i in range(len(case.p)):
        up, down = (
            ours(name, case.inputs([x + sign * step * (i == j) for j, x in enumerate(case.p)]))[0] for sign in (1, -1)
        )
        assert (up - down) / (2 * step) == pytest.approx(slopes[i], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", sorted(name for name, loss in LOSSES.items() if "kl_coef" in loss.settings))
def test_the_penalty_towards_the_base_is_added_with_its_own_gradient(name: str) -> None:
    case = random_case(0)
    plain, plain_slopes = EXPECTED[name](case)
    penalty, penalty_slopes = per_token(
        case, lambda p, q, a, ref: (math.exp(ref - p) - (ref - p) - 1, 1 - math.exp(ref - p))
    )
    value, slopes = ours(name, case.inputs(), kl_coef=0.3)
    assert value == pytest.approx(plain + 0.3 * penalty, rel=1e-12)
    added = [x + 0.3 * y for x, y in zip(plain_slopes, penalty_slopes, strict=True)]
    assert slopes == pytest.approx(added, rel=1e-11, abs=1e-14)


@pytest.mark.parametrize("name", ["importance_sampling", "ppo", "cispo", "dro", "gspo", "gspo_token"])
def test_where_policy_and_sampler_agree_every_gradient_is_minus_the_advantage(name: str) -> None:
    case = random_case(0)
    # gspo spreads a row's gradient over the row, so all its tokens get one weight and one advantage.
    row_of = [number for number, n in enumerate(ROWS) for _ in range(n)]
    w = [float(bool(x)) for x in case.w]
    a = [(-1.5, 0.0, 0.7, 2.0)[row] for row in row_of]
    _, slopes = ours(name, replace(case, q=case.p, w=w, a=a).inputs())
    assert slopes == pytest.approx([-x * y for x, y in zip(w, a, strict=True)], rel=1e-12)


def test_a_negative_advantage_above_the_clip_keeps_its_gradient_and_is_not_counted_as_clipped() -> None:
    case = random_case(0)
    assert math.exp(case.p[0] - case.q[0]) > HIGH
    assert case.a[0] < 0
    output = find_loss("ppo")(case.inputs())
    _, slopes = ours("ppo", case.inputs())
    assert slopes[0] != 0
    assert slopes[1] == slopes[2] == 0
    active = [i for i, w in enumerate(case.w) if w]
    ratios = {i: math.exp(case.p[i] - case.q[i]) for i in active}
    clipped = [i for i in active if (case.a[i] > 0 and ratios[i] > HIGH) or (case.a[i] < 0 and ratios[i] < LOW)]
    assert output.metrics["clipped_tokens"] == len(clipped)
    assert output.metrics["ratio_tokens"] == len(active) == 13
    assert output.metrics["ratio_sum"] == pytest.approx(sum(ratios.values()))
    assert output.metrics["sampler_gap_sum"] == pytest.approx(sum(abs(case.p[i] - case.q[i]) for i in active))
    assert output.metrics["advantage_zero_tokens"] == 1


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_values_and_metrics_of_micro_batches_add_up(name: str) -> None:
    case = cases_of(name)[0]
    whole = find_loss(name)(case.inputs())
    spans = case.spans()
    totals: dict[str, float] = {"loss": 0.0}
    for rows in (spans[:2], spans[2:]):
        at = [i for span in rows for i in span]
        pick = {key: [getattr(case, key)[i] for i in at] for key in ("p", "q", "a", "w", "ref")}
        output = find_loss(name)(Case(**pick, rows=tuple(len(span) for span in rows)).inputs())
        for key, value in {"loss": float(output.loss.detach()), **output.metrics}.items():
            totals[key] = totals.get(key, 0.0) + value
    assert totals == pytest.approx({"loss": float(whole.loss.detach()), **whole.metrics}, rel=1e-12)


def test_a_preference_is_told_by_its_margin() -> None:
    inputs = LossInputs(
        logprobs=torch.tensor([-1.0, -2.0, -1.0, -3.0]),
        weights=torch.ones(4),
        reference_logprobs=torch.tensor([-2.0, -2.0, -2.0, -1.0]),
        rows=(1, 1, 1, 1),
    )
    metrics = find_loss("dpo")(inputs, {"beta": 0.5}).metrics
    assert (metrics["pairs"], metrics["preferred_pairs"]) == (2, 2)
    assert metrics["margin_sum"] == pytest.approx(0.5 * ((1.0 - 0.0) + (1.0 + 2.0)))
    assert metrics["chosen_reward_sum"] == pytest.approx(0.5 * 2.0)
    assert metrics["rejected_reward_sum"] == pytest.approx(0.5 * -2.0)


def test_cross_entropy_over_a_teachers_tokens_is_the_divergence_up_to_the_teachers_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    teacher[3, 2:] = -math.inf
    weights = top_k_weights(teacher)
    logprobs = logits.log_softmax(1)
    # A token that the teacher does not have may be impossible for the policy, too.
    at_targets = torch.where(weights > 0, logprobs, -math.inf)
    loss = find_loss("cross_entropy")(LossInputs(at_targets, weights)).loss
    (gradient,) = torch.autograd.grad(loss, logits)
    probabilities = [[math.exp(x) for x in row] for row in teacher.tolist()]
    shares = [[x / sum(row) for x in row] for row in probabilities]
    divergence = entropy = 0.0
    for share, row in zip(shares, logprobs.tolist(), strict=True):
        divergence += sum(s * (math.log(s) - p) for s, p in zip(share, row, strict=True) if s)
        entropy -= sum(s * math.log(s) for s in share if s)
    assert float(loss.detach()) == pytest.approx(divergence + entropy, rel=1e-12)
    torch.testing.assert_close(gradient, logits.softmax(1).detach() - torch.tensor(shares, dtype=torch.float64))


def test_a_teacher_turns_into_advantages_on_the_sampled_tokens() -> None:
    rng = random.Random(0)
    student, teacher = ([rng.uniform(-5, 0) for _ in range(14)] for _ in range(2))
    mask = [0.0, 0.0, *[1.0] * 12]
    student[0] = -math.inf
    tensors = [torch.tensor(x, dtype=torch.float64) for x in (student, teacher, mask)]
    plain = [-0.4 * (s - t) if m else 0.0 for s, t, m in zip(student, teacher, mask, strict=True)]
    assert distillation_advantages(*tensors, coefficient=0.4).tolist() == pytest.approx(plain, rel=1e-12)
    later = [sum(0.9 ** (u - t) * plain[u] for u in range(t, 14)) for t in range(14)]
    discounted = distillation_advantages(*tensors, coefficient=0.4, discount=0.9)
    assert discounted.tolist() == pytest.approx(later, rel=1e-12)
