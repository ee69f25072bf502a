"""Every architecture trains in slots, is saved, restored and exported, and stock PEFT agrees with what was trained."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from openmint.adapters.checks import check_adapter_folder
from openmint.bases import BaseFacts, targets_of
from openmint.training_targets import choose_targets
from openmint_exporter.export import (
    _write_from_checkpoint,  # pyright: ignore[reportPrivateUsage]
    _write_from_peft,  # pyright: ignore[reportPrivateUsage]
)
from openmint_trainer.adam import AdamParams
from openmint_trainer.banks import AdapterShape
from openmint_trainer.checkpoints import CheckpointMeta, DataCursor, encode_generator, read_checkpoint
from openmint_trainer.executor import Executor, TrainedPolicy, Work
from openmint_trainer.resident_base import ResidentBase, adopt_base
from openmint_trainer.rows import Portion, Row

Build = Callable[..., PreTrainedModel]
DIGEST = "sha256:" + "0" * 64
PARAMS = AdamParams(learning_rate=5e-3, clip_norm=0.0)


def portion(seed: int, lengths: tuple[int, ...] = (11, 26)) -> Portion:
    generator = torch.Generator().manual_seed(seed)
    rows: list[Row] = []
    for length in lengths:
        ids = torch.randint(3, 96, (length + 1,), generator=generator)
        rows.append(Row(ids[:-1], ids[1:], torch.ones(length)))
    return Portion(tuple(rows))


def open_policy(executor: Executor, seed: int, rank: int = 4) -> TrainedPolicy:
    return executor.open(AdapterShape(rank, 2.0 * rank, choose_targets(None, executor.base.modules)), seed)


def matrices(executor: Executor, policy: TrainedPolicy, kind: str = "masters") -> list[torch.Tensor]:
    bank = executor.banks.bank_of(policy.slot)
    return [m.clone() for path in policy.slot.paths for m in bank.matrices(kind, policy.slot, path)]  # pyright: ignore[reportArgumentType]


def save(executor: Executor, policy: TrainedPolicy, path: Path) -> None:
    shape = policy.slot.shape
    executor.save(
        policy,
        path,
        CheckpointMeta(
            base=executor.base.name,
            base_digest=DIGEST,
            rank=shape.rank,
            alpha=shape.alpha,
            targets=list(shape.targets),
            step=policy.adam_step,
            adam_step=policy.adam_step,
            tokens=0,
            cursor=DataCursor(),
            random_state=encode_generator(policy.generator),
            seed=policy.seed,
            recipe="sft",
        ),
    )


def facts_of(base: ResidentBase) -> BaseFacts:
    """What the catalogue would know of a base whose files name its modules as the built model does."""
    modules = {path: (s.out_features, s.in_features) for path, s in base.modules.items() if not s.experts}
    experts = {path: (s.experts, s.out_features, s.in_features) for path, s in base.modules.items() if s.experts}
    return BaseFacts(
        base.name, DIGEST, "", "", modules, targets_of(modules), 256, 96, 64, 2, "float32", False, {}, experts
    )


def test_it_learns_resumes_in_another_slot_and_is_what_stock_peft_loads(
    model_type: str, build_model: Build, tmp_path: Path
) -> None:
    executor = Executor(adopt_base(build_model(model_type), "tiny", DIGEST), max_slots=4)
    stranger, policy = open_policy(executor, 9, rank=8), open_policy(executor, 1)
    batch = portion(0)
    losses: list[float] = []
    for _ in range(4):
        _, result = executor.forward_backward([Work(stranger, portion(5)), Work(policy, batch)])
        losses.append(result.loss)
        assert executor.optim_step(policy, PARAMS) > 0
    assert losses[-1] < losses[0] - 1, losses
    assert all(m.any() for m in matrices(executor, policy))

    checkpoint = tmp_path / "checkpoint.safetensors"
    save(executor, policy, checkpoint)
    again = executor.restore(read_checkpoint(checkpoint))
    assert again.slot.index != policy.slot.index
    for one in (policy, again):
        executor.forward_backward([Work(one, portion(7))])
        executor.optim_step(one, PARAMS)
    pairs = zip(matrices(executor, policy), matrices(executor, again), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)

    save(executor, again, checkpoint)
    folder = tmp_path / "revision"
    folder.mkdir()
    facts = facts_of(executor.base)
    _write_from_checkpoint(checkpoint, facts, "float32", folder)
    found = check_adapter_folder(folder, facts)
    assert found.rank == 4
    assert bool(found.parameters) == any(shape.experts for shape in executor.base.modules.values())
    imported = tmp_path / "imported"
    imported.mkdir()
    _write_from_peft(folder, found, imported)
    for file in folder.iterdir():
        assert (imported / file.name).read_bytes() == file.read_bytes()
    stock = PeftModel.from_pretrained(build_model(model_type), folder)
    row = batch.rows[1]
    (result,) = executor.forward_backward([Work(again, Portion((row,)))])
    with torch.no_grad():
        theirs = stock(input_ids=row.tokens[None]).logits[0].log_softmax(-1).gather(1, row.targets[:, None])[:, 0]
    assert float((result.logprobs - theirs).abs().max()) < 1e-4
    with torch.no_grad(), stock.disable_adapter():
        base = stock(input_ids=row.tokens[None]).logits[0].log_softmax(-1).gather(1, row.targets[:, None])[:, 0]
    assert float((base - theirs).abs().max()) > 0.1


def test_gradients_equal_those_of_stock_peft(model_type: str, build_model: Build, tmp_path: Path) -> None:
    executor = Executor(adopt_base(build_model(model_type), "tiny", DIGEST), max_slots=4)
    policy = open_policy(executor, 1)
    executor.forward_backward([Work(policy, portion(3))])
    executor.optim_step(policy, PARAMS)
    checkpoint = tmp_path / "checkpoint.safetensors"
    save(executor, policy, checkpoint)
    folder = tmp_path / "revision"
    folder.mkdir()
    _write_from_checkpoint(checkpoint, facts_of(executor.base), "float32", folder)
    stock = PeftModel.from_pretrained(build_model(model_type), folder, is_trainable=True)
    batch = portion(4)
    executor.forward_backward([Work(policy, batch), Work(open_policy(executor, 2), portion(5))])
    loss = torch.zeros(())
    for row in batch.rows:
        logprobs = stock(input_ids=row.tokens[None]).logits[0].log_softmax(-1)
        loss = loss - logprobs.gather(1, row.targets[:, None]).sum()
    loss.backward()
    # The sum of squares is the same in any layout of the same numbers.
    ours = sum(float(m.double().square().sum()) for m in matrices(executor, policy, "gradients"))
    gradients = [p.grad for p in stock.parameters() if p.requires_grad]
    theirs = sum(float(gradient.double().square().sum()) for gradient in gradients if gradient is not None)
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_a_policy_trains_to_the_same_bits_alone_and_in_company(model_type: str, build_model: Build) -> None:
    def train(companions: int) -> list[torch.Tensor]:
        executor = Executor(adopt_base(build_model(model_type), "tiny", DIGEST), max_slots=4)
        others = [open_policy(executor, 10 + n, rank=2 * n + 2) for n in range(companions)]
        policy = open_policy(executor, 1)
        for step in range(3):
            works = [Work(other, portion(20 + step, (9, 14 + other.seed))) for other in others]
            works.insert(step % (companions + 1), Work(policy, portion(step)))
            executor.forward_backward(works)
            executor.optim_step(policy, PARAMS)
            for other in others:
                executor.optim_step(other, PARAMS)
        return matrices(executor, policy)

    assert all(torch.equal(one, other) for one, other in zip(train(0), train(3), strict=True))
