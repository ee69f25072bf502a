"""A policy's training does not depend on its company: bit for bit, on the CPU, at fixed shapes."""

from collections.abc import Callable

import pytest
import torch

from openmint.errors import BadRequest, Diverged, Overloaded
from openmint_trainer.adam import AdamParams
from openmint_trainer.banks import AdapterShape
from openmint_trainer.executor import Executor, TrainedPolicy, Work
from openmint_trainer.resident_base import ResidentBase
from openmint_trainer.rows import Portion

Shape = Callable[..., AdapterShape]
MIXED = [(8, 16.0), (4, 8.0), (2, 4.0), (12, 32.0)]
PARAMS = AdamParams(learning_rate=1e-2)


def wake_b(executor: Executor, policy: TrainedPolicy) -> None:
    """Give B values, so that the gradient of A is not zero."""
    bank = executor.banks.bank_of(policy.slot)
    generator = torch.Generator().manual_seed(policy.seed)
    for path in policy.slot.paths:
        _, b = bank.matrices("masters", policy.slot, path)
        b.copy_(torch.randn(b.shape, generator=generator) * 0.1)
    bank.refresh(policy.slot)


def gradients(executor: Executor, policy: TrainedPolicy) -> list[torch.Tensor]:
    bank = executor.banks.bank_of(policy.slot)
    return [m.clone() for p in policy.slot.paths for m in bank.matrices("gradients", policy.slot, p)]


def weights(executor: Executor, policy: TrainedPolicy) -> list[torch.Tensor]:
    bank = executor.banks.bank_of(policy.slot)
    return [m.clone() for p in policy.slot.paths for m in bank.matrices("masters", policy.slot, p)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_in_mixed_company_equals_the_gradient_alone(
    dtype: torch.dtype,
    make_executor: Callable[..., Executor],
    make_shape: Shape,
    make_portion: Callable[..., Portion],
) -> None:
    portions = [make_portion((7, 33), seed) for seed in range(len(MIXED))]
    mixed = make_executor(dtype)
    policies = [mixed.open(make_shape(rank, alpha), seed) for seed, (rank, alpha) in enumerate(MIXED)]
    for policy in policies:
        wake_b(mixed, policy)
    results = mixed.forward_backward([Work(p, portion) for p, portion in zip(policies, portions, strict=True)])

    for seed, (rank, alpha) in enumerate(MIXED):
        alone = make_executor(dtype)
        policy = alone.open(make_shape(rank, alpha), seed)
        wake_b(alone, policy)
        (result,) = alone.forward_backward([Work(policy, portions[seed])])
        assert torch.equal(result.logprobs, results[seed].logprobs)
        pairs = zip(gradients(alone, policy), gradients(mixed, policies[seed]), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert any(bool(g.any()) for g in gradients(alone, policy))


def test_gradient_of_a_policy_without_rows_is_exactly_zero(
    make_executor: Callable[..., Executor], make_shape: Shape, make_portion: Callable[..., Portion]
) -> None:
    executor = make_executor()
    busy, idle = executor.open(make_shape(), 0), executor.open(make_shape(), 1)
    wake_b(executor, busy)
    wake_b(executor, idle)
    executor.forward_backward([Work(busy, make_portion())])
    assert not any(bool(g.any()) for g in gradients(executor, idle))


def test_padding_of_the_rank_class_stays_exactly_zero(
    make_executor: Callable[..., Executor], make_shape: Shape, make_portion: Callable[..., Portion]
) -> None:
    executor = make_executor()
    policy = executor.open(make_shape(rank=3), 0)
    for _ in range(3):
        executor.forward_backward([Work(policy, make_portion())])
        executor.optim_step(policy, AdamParams(weight_decay=0.1))
    bank = executor.banks.bank_of(policy.slot)
    for path in policy.slot.paths:
        a, b = bank.padded_matrices("masters", policy.slot, path)
        assert (a.shape[0], b.shape[1]) == (8, 8)
        assert not a[3:].any()
        assert not b[:, 3:].any()
        assert b[:, :3].any()


def test_modules_outside_a_policys_targets_stay_the_base(
    make_executor: Callable[..., Executor], make_shape: Shape, make_portion: Callable[..., Portion]
) -> None:
    executor = make_executor()
    policy = executor.open(make_shape(targets=("q_proj", "v_proj")), 0)
    executor.forward_backward([Work(policy, make_portion())])
    executor.optim_step(policy, PARAMS)
    assert {path.rpartition(".")[2] for path in policy.slot.paths} == {"q_proj", "v_proj"}
    outside = "model.layers.0.mlp.up_proj"
    assert outside in executor.base.modules
    assert not executor.banks.bank_of(policy.slot).matrices("masters", policy.slot, outside)[0].any()


def test_one_policys_nan_fails_that_policy_alone(
    make_executor: Callable[..., Executor], make_shape: Shape, make_portion: Callable[..., Portion]
) -> None:
    def train(with_sick_company: bool) -> list[torch.Tensor]:
        executor = make_executor()
        well, sick = executor.open(make_shape(), 0), executor.open(make_shape(rank=4), 1)
        if with_sick_company:
            for path in sick.slot.paths:
                executor.banks.bank_of(sick.slot).matrices("masters", sick.slot, path)[1].fill_(float("nan"))
            executor.banks.bank_of(sick.slot).refresh(sick.slot)
        for step in range(2):
            executor.forward_backward([Work(sick, make_portion(seed=50 + step)), Work(well, make_portion(seed=step))])
            if with_sick_company:
                with pytest.raises(Diverged, match="not finite"):
                    executor.optim_step(sick, PARAMS)
            executor.optim_step(well, PARAMS)
        return weights(executor, well)

    assert all(torch.equal(a, b) for a, b in zip(train(True), train(False), strict=True))


def test_an_infinite_gradient_is_named_and_never_applied(
    make_executor: Callable[..., Executor], make_shape: Shape, make_portion: Callable[..., Portion]
) -> None:
    executor = make_executor()
    policy = executor.open(make_shape(), 0)
    executor.forward_backward([Work(policy, make_portion())])
    before = weights(executor, policy)
    executor.banks.bank_of(policy.slot).row(policy.slot).gradients[0] = float("inf")
    with pytest.raises(Diverged, match="gradient is not finite"):
        executor.optim_step(policy, PARAMS)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(executor, policy), strict=True))


def test_clipping_uses_the_norm_of_the_policys_own_gradient(
    make_executor: Callable[..., Executor], make_shape: Shape, make_portion: Callable[..., Portion]
) -> None:
    executor = make_executor()
    quiet, loud = executor.open(make_shape(), 0), executor.open(make_shape(), 1)
    loud_portion = Portion(tuple(row.scaled(1e6) for row in make_portion(seed=1).rows))
    executor.forward_backward([Work(quiet, make_portion()), Work(loud, loud_portion)])
    own = torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients(executor, quiet)]))
    assert executor.optim_step(quiet, PARAMS) == pytest.approx(float(own), rel=1e-6)
    assert executor.optim_step(loud, PARAMS) > 1e4


def test_adapters_stay_within_the_memory_given_to_them(
    make_executor: Callable[..., Executor], make_base: Callable[..., ResidentBase], make_shape: Shape
) -> None:
    one_slot = make_executor().banks
    one_slot.reserve(make_shape())
    executor = Executor(make_base(), max_slots=8, max_bank_bytes=2 * one_slot.taken_bytes)
    first, _ = executor.open(make_shape(), 0), executor.open(make_shape(), 1)
    with pytest.raises(Overloaded, match="policies in training hold"):
        executor.open(make_shape(), 2)
    with pytest.raises(BadRequest, match="rank 32 needs"):
        executor.open(make_shape(rank=32), 2)
    executor.close(first)
    executor.open(make_shape(), 2)


def test_a_slot_that_is_used_again_starts_from_nothing(
    make_executor: Callable[..., Executor], make_shape: Shape, make_portion: Callable[..., Portion]
) -> None:
    executor = make_executor()
    policy = executor.open(make_shape(), 0)
    fresh = weights(executor, policy)
    executor.forward_backward([Work(policy, make_portion())])
    executor.optim_step(policy, PARAMS)
    executor.close(policy)
    again = executor.open(make_shape(), 0)
    assert again.slot.index == policy.slot.index
    assert all(torch.equal(a, b) for a, b in zip(fresh, weights(executor, again), strict=True))
    assert not executor.banks.bank_of(again.slot).row(again.slot).moment2.any()
