"""Every loss on a real forward pass: in any company, from real rows, and refused for its own policy alone."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch

from openmint.errors import BadRequest
from openmint_trainer.adam import AdamParams
from openmint_trainer.banks import AdapterShape
from openmint_trainer.executor import Executor, TrainedPolicy, Work, WorkResult
from openmint_trainer.losses import LOSSES, top_k_weights
from openmint_trainer.rows import Portion, Row, make_row, split_batch

MakeExecutor = Callable[..., Executor]
MakeRow = Callable[..., Row]
Shape = Callable[..., AdapterShape]
LENGTHS = (7, 33, 12, 20)


def sampled_row(make_row: MakeRow, length: int, seed: int) -> Row:
    """A row with everything that any loss reads; nothing is known of its first half, which is not trained."""
    row = make_row(length, seed=seed, trained=length // 2)
    generator = torch.Generator().manual_seed(seed)
    known = row.weights != 0
    unknown = torch.where(known, 0.0, -float("inf"))
    return replace(
        row,
        sampler_logprobs=-4 - torch.rand(length, generator=generator) + unknown,
        advantages=torch.randn(length, generator=generator),
        reference_logprobs=-4 - torch.rand(length, generator=generator) + unknown,
    )


def portion_for(loss: str, make_row: MakeRow, seed: int = 0) -> Portion:
    rows = [sampled_row(make_row, length, 10 * seed + i) for i, length in enumerate(LENGTHS)]
    if loss == "top_k":
        generator = torch.Generator().manual_seed(seed)
        rows = [
            Row(
                row.tokens,
                torch.randint(96, (len(row), 5), generator=generator),
                top_k_weights(torch.randn(len(row), 5, generator=generator)) * row.weights[:, None],
            )
            for row in rows
        ]
    return Portion(tuple(rows))


def work_of(policy: TrainedPolicy, loss: str, make_row: MakeRow) -> Work:
    kl: Mapping[str, float] = {"kl_coef": 0.1} if loss == "ppo" else {}
    return Work(policy, portion_for(loss, make_row), "cross_entropy" if loss == "top_k" else loss, kl)


def gradients(executor: Executor, policy: TrainedPolicy) -> list[torch.Tensor]:
    bank = executor.banks.bank_of(policy.slot)
    return [m.clone() for p in policy.slot.paths for m in bank.matrices("gradients", policy.slot, p)]


def open_awake(executor: Executor, shape: AdapterShape, seed: int) -> TrainedPolicy:
    """A policy whose B is not zero, so that A has a gradient too."""
    policy = executor.open(shape, seed)
    bank = executor.banks.bank_of(policy.slot)
    generator = torch.Generator().manual_seed(seed)
    for path in policy.slot.paths:
        _, b = bank.matrices("masters", policy.slot, path)
        b.copy_(torch.randn(b.shape, generator=generator) * 0.05)
    bank.refresh(policy.slot)
    return policy


KINDS = [*sorted(LOSSES), "top_k"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_policies_with_different_losses_in_one_batch_train_as_alone(
    dtype: torch.dtype, make_executor: MakeExecutor, make_shape: Shape, make_row: MakeRow
) -> None:
    mixed = make_executor(dtype, max_slots=len(KINDS))
    policies = [open_awake(mixed, make_shape(rank=4), seed) for seed in range(len(KINDS))]
    together = mixed.forward_backward([work_of(p, kind, make_row) for p, kind in zip(policies, KINDS, strict=True)])
    for seed, kind in enumerate(KINDS):
        alone = make_executor(dtype)
        policy = open_awake(alone, make_shape(rank=4), seed)
        (result,) = alone.forward_backward([work_of(policy, kind, make_row)])
        assert (result.loss, result.metrics) == (together[seed].loss, together[seed].metrics)
        pairs = zip(gradients(alone, policy), gradients(mixed, policies[seed]), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), kind
        assert any(bool(g.any()) for g in gradients(alone, policy)), kind


@pytest.mark.parametrize(
    ("loss", "config", "rows", "message"),
    [
        ("alchemy", {}, "full", "'alchemy' is unknown"),
        ("ppo", {"epsilon": 0.1}, "full", "no setting 'epsilon'"),
        ("ppo", {}, "bare", "needs sampler_logprobs in every row"),
        ("ppo", {}, "half bare", "2 of 4 rows have no sampler_logprobs"),
        ("dpo", {}, "odd", "takes pairs of rows, and there are 3"),
        ("cross_entropy", {}, "ragged", "different numbers of targets"),
    ],
)
def test_what_a_loss_refuses_fails_its_own_policy_alone(
    loss: str,
    config: dict[str, float],
    rows: str,
    message: str,
    make_executor: MakeExecutor,
    make_shape: Shape,
    make_row: MakeRow,
) -> None:
    full = portion_for("ppo", make_row, seed=5).rows
    bare = tuple(Row(row.tokens, row.targets, row.weights) for row in full)
    ragged = portion_for("top_k", make_row).rows[:2] + bare[2:]
    given = {"full": full, "bare": bare, "half bare": full[:2] + bare[2:], "odd": full[:3], "ragged": ragged}[rows]

    def train(with_company: bool) -> tuple[WorkResult, list[torch.Tensor], TrainedPolicy | None, Executor]:
        executor = make_executor()
        well = open_awake(executor, make_shape(), 0)
        sick = executor.open(make_shape(rank=4), 1) if with_company else None
        work = [Work(well, portion_for("gspo", make_row), "gspo")]
        if sick is not None:
            work.insert(0, Work(sick, Portion(given), loss, config))
        return executor.forward_backward(work)[-1], gradients(executor, well), sick, executor

    result, grads, sick, executor = train(True)
    alone, grads_alone, _, _ = train(False)
    assert result.loss == alone.loss
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_alone, strict=True))
    assert sick is not None
    assert not any(bool(g.any()) for g in gradients(executor, sick))
    with pytest.raises(BadRequest, match=message):
        executor.optim_step(sick, AdamParams())


def test_reference_logprobs_are_the_bases_own_and_leave_no_trace(
    make_executor: MakeExecutor, make_shape: Shape, make_row: MakeRow
) -> None:
    executor = make_executor()
    fresh, awake = executor.open(make_shape(), 0), open_awake(executor, make_shape(), 1)
    rows = [make_row(length, seed=length, trained=length // 2) for length in LENGTHS]
    reference = executor.reference_logprobs(rows)
    assert not any(bool(g.any()) for p in (fresh, awake) for g in gradients(executor, p))
    assert all(not values.requires_grad for values in reference)
    used = torch.cat([values[row.weights != 0] for values, row in zip(reference, rows, strict=True)])
    assert all(not values[row.weights == 0].any() for values, row in zip(reference, rows, strict=True))
    # A fresh adapter adds zero, so the policy says what the base says; a trained one does not.
    plain, trained = executor.forward_backward([Work(p, Portion(tuple(rows))) for p in (fresh, awake)])
    torch.testing.assert_close(plain.logprobs, used, rtol=1e-6, atol=1e-6)
    assert (trained.logprobs - used).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rows_reference_is_the_same_to_the_bit_beside_any_other_rows(
    dtype: torch.dtype, make_executor: MakeExecutor, make_row: MakeRow
) -> None:
    executor = make_executor(dtype)
    rows = [make_row(length, seed=length, trained=length // 2) for length in LENGTHS]
    together = executor.reference_logprobs(rows)
    for budget in (33, 40):
        apart = executor.reference_logprobs(rows[::-1], budget_tokens=budget)[::-1]
        assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


def test_positions_of_the_sequence_mask_reach_the_loss_though_they_are_not_trained(
    make_executor: MakeExecutor, make_shape: Shape, make_row: MakeRow
) -> None:
    row = sampled_row(make_row, 12, seed=0)
    masked = replace(row, sequence_mask=(row.weights != 0).float())
    assert masked.sequence_mask is not None
    masked.sequence_mask[2] = 1.0
    assert masked.sampler_logprobs is not None
    masked.sampler_logprobs[2] = -4.0
    executor = make_executor()
    policy = executor.open(make_shape(), 0)
    plain, wider = (executor.forward_backward([Work(policy, Portion((r,)), "gspo_token")])[0] for r in (row, masked))
    assert (len(plain.logprobs), len(wider.logprobs)) == (6, 7)
    assert plain.loss != wider.loss
    assert wider.metrics["ratio_tokens"] == 6


def test_a_row_is_cut_after_its_last_used_token_with_all_that_is_known_of_it() -> None:
    row = make_row(
        [5, 6, 7, 8, 9],
        [False, False, True, False, False],
        sampler_logprobs=[0.0, -1.0, -2.0, -3.0, -4.0],
        advantages=[0.0, 0.1, 0.2, 0.3, 0.4],
        sequence_mask=[0, 0, 1, 1, 0],
    )
    assert row.tokens.tolist() == [5, 6, 7]
    assert row.targets.tolist() == [6, 7, 8]
    assert row.weights.tolist() == [0.0, 1.0, 0.0]
    assert row.trained_tokens == 1
    assert row.used_positions().tolist() == [False, True, True]
    halved = row.scaled(0.5)
    assert halved.weights.tolist() == [0.0, 0.5, 0.0]
    assert halved.sampler_logprobs is not None
    assert halved.sampler_logprobs.tolist() == [-1.0, -2.0, -3.0]
    assert halved.advantages is not None
    assert halved.advantages.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert halved.reference_logprobs is None


def test_a_row_whose_tensors_do_not_fit_is_not_made() -> None:
    tokens = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"advantages \(2,\) of 3 tokens"):
        Row(tokens, tokens, torch.ones(3), advantages=torch.ones(2))
    with pytest.raises(ValueError, match="of 3 tokens"):
        Row(tokens, tokens[:2], torch.ones(2))


def test_pairs_are_never_parted(make_row: MakeRow) -> None:
    rows = [make_row(length, seed=length) for length in (10, 12, 4, 5, 40, 3)]
    portions = split_batch(rows, 30, unit_rows=2)
    assert [[len(row) for row in portion.rows] for portion in portions] == [[10, 12], [4, 5], [40, 3]]
    with pytest.raises(ValueError, match="zip"):
        split_batch(rows[:3], 30, unit_rows=2)
