"""Keeping only the inputs of layers for the way back changes the memory that a step takes, and not one bit of it."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from openmint.training_targets import choose_targets
from openmint_trainer.banks import AdapterShape
from openmint_trainer.executor import Executor, Work
from openmint_trainer.resident_base import adopt_base
from openmint_trainer.rows import Portion, Row

Build = Callable[..., PreTrainedModel]


def portion(seed: int, lengths: tuple[int, ...]) -> Portion:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, 96, (length + 1,), generator=generator) for length in lengths]
    return Portion(tuple(Row(row[:-1], row[1:], torch.ones(len(row) - 1)) for row in ids))


def saved_bytes(executor: Executor, works: list[Work]) -> int:
    """What autograd keeps during a step, each storage once."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = executor.base.hidden_states([row.tokens for work in works for row in work.portion.rows])
    del hidden
    weights = {p.untyped_storage().data_ptr() for p in executor.base.decoder.parameters()}
    return sum(size for pointer, size in kept.items() if pointer not in weights)


def test_gradients_are_the_same_bits(model_type: str, build_model: Build) -> None:
    def gradients(recompute: bool) -> list[torch.Tensor]:
        executor = Executor(adopt_base(build_model(model_type), "tiny", "", recompute), max_slots=2)
        targets = choose_targets(None, executor.base.modules)
        policies = [executor.open(AdapterShape(rank, 16.0, targets), rank) for rank in (4, 8)]
        for policy in policies:
            bank = executor.banks.bank_of(policy.slot)
            bank.row(policy.slot).masters.normal_(std=0.05, generator=torch.Generator().manual_seed(policy.seed))
            bank.refresh(policy.slot)
        # Two policies with rows of their own: a layer that is made again must meet the owner that it had.
        executor.forward_backward([Work(p, portion(p.seed, (9, 14))) for p in policies])
        return [executor.banks.bank_of(p.slot).row(p.slot).gradients for p in policies]

    pairs = list(zip(gradients(True), gradients(False), strict=True))
    assert all(torch.equal(one, other) for one, other in pairs)
    assert all(bool(one.any()) for one, _ in pairs)


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe"])
def test_a_step_keeps_a_fraction_of_the_activations(model_type: str, build_model: Build) -> None:
    def kept(recompute: bool) -> int:
        base = adopt_base(build_model(model_type, num_hidden_layers=6), "tiny", "", recompute)
        executor = Executor(base, max_slots=1)
        policy = executor.open(AdapterShape(4, 8.0, choose_targets(None, base.modules)), 0)
        return saved_bytes(executor, [Work(policy, portion(0, (64, 64)))])

    assert kept(True) < kept(False) / 4
