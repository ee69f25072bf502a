"""Whole trainings in mixed company: exact resume, exact curves, failures that stay with their owner."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from openmint.errors import BadDataset, BadRequest, Diverged, Overloaded
from openmint.events import TrainRequested
from openmint_trainer.checkpoints import BrokenCheckpoint, read_checkpoint
from openmint_trainer.executor import Executor
from openmint_trainer.mixed_training import MixedTraining, RunFailed, StepFinished
from openmint_trainer.rows import Row

GOLDEN = Path(__file__).parents[2] / "golden" / "trainer" / "loss_curves.json"

MakeExecutor = Callable[..., Executor]
MakeRow = Callable[..., Row]


def spec(steps: int = 4, seed: int = 0, **sections: dict[str, Any]) -> TrainRequested:
    body: dict[str, Any] = {
        "policy": "p",
        "base": "tiny",
        "dataset": {"digest": "sha256:" + "0" * 64},
        "training": {"steps": steps, "batch_rows": 4, "seed": seed} | sections.pop("training", {}),
        "optimizer": {"learning_rate": 1e-2, "schedule": "cosine", "warmup_steps": 2},
    }
    return TrainRequested.model_validate(body | sections)


def dataset(make_row: MakeRow, seed: int, count: int = 6) -> list[Row]:
    return [make_row(5 + (7 * i + seed) % 20, seed=100 * seed + i, trained=3) for i in range(count)]


def train(training: MixedTraining) -> dict[object, list[float]]:
    curves: dict[object, list[float]] = {}
    while training.has_work:
        for event in training.advance():
            assert isinstance(event, StepFinished)
            curves.setdefault(event.key, []).append(event.loss)
    return curves


def masters(executor: Executor, training: MixedTraining, key: str) -> torch.Tensor:
    slot = training.runs[key].policy.slot
    bank = executor.banks.bank_of(slot)
    return torch.cat([m.flatten() for path in slot.paths for m in bank.matrices("masters", slot, path)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_resumed_alone_in_another_slot_equals_the_uninterrupted_run_in_company(
    dtype: torch.dtype, make_executor: MakeExecutor, make_row: MakeRow, tmp_path: Path
) -> None:
    executor = make_executor(dtype)
    training = MixedTraining(executor, budget_tokens=512)
    for seed, name in enumerate(("a", "b", "c")):
        training.admit(name, name, spec(steps=6, seed=seed), dataset(make_row, seed))
    curve: list[float] = []
    while training.has_work:
        for event in training.advance():
            assert isinstance(event, StepFinished)
            if event.key == "b":
                curve.append(event.loss)
                if event.step == 3:
                    training.save("b", tmp_path / "b.safetensors")
    expected = masters(executor, training, "b")

    fresh = make_executor(dtype)
    resumed = MixedTraining(fresh, budget_tokens=512)
    checkpoint = read_checkpoint(tmp_path / "b.safetensors")
    run = resumed.admit("b", "b", spec(steps=6, seed=1), dataset(make_row, 1), checkpoint)
    assert run.policy.slot.index != training.runs["b"].policy.slot.index
    assert run.step == 3
    assert train(resumed)["b"] == curve[3:]
    assert torch.equal(masters(fresh, resumed, "b"), expected)


def test_gradients_not_yet_applied_are_in_the_checkpoint(
    make_executor: MakeExecutor, make_row: MakeRow, tmp_path: Path
) -> None:
    executor = make_executor()
    training = MixedTraining(executor, budget_tokens=512)
    run = training.admit("a", "a", spec(), dataset(make_row, 0))
    bank = executor.banks.bank_of(run.policy.slot)
    training.save("a", tmp_path / "clean.safetensors")
    assert not any(name.startswith("grad.") for name in read_checkpoint(tmp_path / "clean.safetensors").tensors)

    for path in run.policy.slot.paths:
        for matrix in bank.matrices("gradients", run.policy.slot, path):
            matrix.fill_(0.25)
    run.policy.has_pending_gradients = True
    training.save("a", tmp_path / "pending.safetensors")
    restored = make_executor()
    policy = restored.restore(read_checkpoint(tmp_path / "pending.safetensors"))
    assert policy.has_pending_gradients
    for path in policy.slot.paths:
        for matrix in restored.banks.bank_of(policy.slot).matrices("gradients", policy.slot, path):
            assert bool((matrix == 0.25).all())


def test_the_same_state_gives_the_same_bytes(make_executor: MakeExecutor, make_row: MakeRow, tmp_path: Path) -> None:
    digests: list[bytes] = []
    for name in ("one", "two"):
        training = MixedTraining(make_executor(), budget_tokens=512)
        training.admit("a", "a", spec(steps=2), dataset(make_row, 0))
        train(training)
        digests.append(training.save("a", tmp_path / name).sha256)
    assert digests[0] == digests[1]


def test_a_checkpoint_is_only_made_between_steps(
    make_executor: MakeExecutor, make_row: MakeRow, tmp_path: Path
) -> None:
    training = MixedTraining(make_executor(), budget_tokens=64, portion_tokens=32)
    training.admit("a", "a", spec(steps=2), [make_row(30, seed=i) for i in range(4)])
    assert training.advance() == []
    with pytest.raises(ValueError, match="inside step 1"):
        training.save("a", tmp_path / "a")
    training.is_draining = True
    train(training)
    assert training.runs["a"].step == 1
    training.save("a", tmp_path / "a")


def test_a_checkpoint_of_another_training_is_refused(
    make_executor: MakeExecutor, make_row: MakeRow, tmp_path: Path
) -> None:
    executor = make_executor()
    training = MixedTraining(executor, budget_tokens=512)
    training.admit("a", "a", spec(), dataset(make_row, 0))
    training.save("a", tmp_path / "a")
    with pytest.raises(BrokenCheckpoint, match="another training"):
        training.admit("b", "b", spec(adapter={"rank": 4}), dataset(make_row, 0), read_checkpoint(tmp_path / "a"))
    (tmp_path / "a").write_bytes(b"not a checkpoint")
    with pytest.raises(BrokenCheckpoint, match="checkpoint a can't be read"):
        read_checkpoint(tmp_path / "a")


def test_a_run_that_diverges_is_named_and_its_neighbour_trains_on_untouched(
    make_executor: MakeExecutor, make_row: MakeRow
) -> None:
    def curve(with_neighbour: bool) -> list[float]:
        executor = make_executor()
        training = MixedTraining(executor, budget_tokens=512)
        training.admit("well", "a", spec(steps=4), dataset(make_row, 0))
        losses: list[float] = []
        if with_neighbour:
            sick = training.admit("sick", "b", spec(steps=4), dataset(make_row, 1))
            bank = executor.banks.bank_of(sick.policy.slot)
            bank.matrices("masters", sick.policy.slot, sick.policy.slot.paths[0])[1].fill_(float("inf"))
            bank.refresh(sick.policy.slot)
        failures: list[RunFailed] = []
        while training.has_work:
            for event in training.advance():
                if isinstance(event, RunFailed):
                    failures.append(event)
                    training.drop(event.key)
                else:
                    losses.append(event.loss)
        if with_neighbour:
            assert [(f.key, type(f.error)) for f in failures] == [("sick", Diverged)]
            assert "step 1" in failures[0].error.detail
        return losses

    assert curve(True) == curve(False)


def test_a_full_bank_and_an_absurd_request_are_refused_by_name(make_executor: MakeExecutor, make_row: MakeRow) -> None:
    training = MixedTraining(make_executor(max_slots=1), budget_tokens=64)
    with pytest.raises(BadDataset, match="row 1 has 80 tokens, more than this trainer's 64"):
        training.admit("a", "a", spec(), [make_row(80, seed=0)])
    with pytest.raises(BadRequest, match="'w1' is not a linear"):
        training.admit("a", "a", spec(adapter={"targets": ["w1"]}), dataset(make_row, 0))
    training.admit("a", "a", spec(), dataset(make_row, 0))
    with pytest.raises(Overloaded, match="all 1 adapter slots"):
        training.admit("b", "b", spec(), dataset(make_row, 0))
    training.drop("a")
    training.admit("b", "b", spec(), dataset(make_row, 0))


def test_loss_curves_are_the_golden_ones(make_executor: MakeExecutor, make_row: MakeRow) -> None:
    training = MixedTraining(make_executor(), budget_tokens=256)
    training.admit("rank8", "a", spec(steps=10), dataset(make_row, 0))
    training.admit("rank4", "b", spec(steps=10, seed=1, adapter={"rank": 4, "alpha": 8}), dataset(make_row, 1))
    training.admit("qv", "b", spec(steps=10, seed=2, adapter={"targets": ["q_proj", "v_proj"]}), dataset(make_row, 2))
    curves = {str(key): losses for key, losses in train(training).items()}
    if os.environ.get("UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(json.dumps(curves, indent=1) + "\n")
    golden: dict[str, list[float]] = json.loads(GOLDEN.read_text())
    assert curves.keys() == golden.keys()
    for name, curve in golden.items():
        assert curves[name] == pytest.approx(curve, rel=1e-3)
        assert curve[-1] < curve[0] * 0.9
