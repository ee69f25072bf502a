"""Order, weights and schedule of supervised fine-tuning."""

from collections.abc import Callable

import pytest
import torch

from openmint.events import DatasetRef, OptimizerSpec, TrainingSpec, TrainRequested
from openmint_trainer.recipes import SupervisedFineTuning
from openmint_trainer.rows import Row

MakeRow = Callable[..., Row]


def recipe(rows: list[Row], seed: int = 0, optimizer: OptimizerSpec | None = None, **training: int):
    spec = TrainRequested(
        policy="p",
        base="tiny",
        dataset=DatasetRef(digest="sha256:" + "0" * 64),
        training=TrainingSpec.model_validate(training),
        optimizer=optimizer or OptimizerSpec(),
    )
    return SupervisedFineTuning(rows, spec, torch.Generator().manual_seed(seed))


def test_every_row_is_seen_once_in_an_epoch_and_epochs_differ(make_row: MakeRow) -> None:
    rows = [make_row(5 + i, seed=i) for i in range(9)]
    dealt = recipe(rows, batch_rows=3)
    epochs = [[len(row) for _ in range(3) for row in dealt.next_batch()] for _ in range(2)]
    assert [sorted(lengths) for lengths in epochs] == [[len(row) for row in rows]] * 2
    assert epochs[0] != epochs[1]


def test_a_batch_larger_than_the_dataset_goes_on_into_the_next_epochs(make_row: MakeRow) -> None:
    dealt = recipe([make_row(5, seed=0), make_row(6, seed=1)], batch_rows=5)
    assert len(dealt.next_batch()) == 5
    assert dealt.cursor.epoch == 2


def test_the_weights_of_a_batch_add_up_to_one(make_row: MakeRow) -> None:
    dealt = recipe([make_row(5 + i, seed=i, trained=1 + i) for i in range(4)], batch_rows=4)
    assert sum(float(row.weights.sum()) for row in dealt.next_batch()) == pytest.approx(1.0)


def test_two_policies_with_different_seeds_see_different_orders(make_row: MakeRow) -> None:
    rows = [make_row(5 + i, seed=i) for i in range(20)]
    first, second = (recipe(rows, seed=seed, batch_rows=20).next_batch() for seed in (0, 1))
    assert [len(row) for row in first] != [len(row) for row in second]


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_the_learning_rate_warms_up_and_follows_its_schedule(
    schedule: str, shares: list[float], make_row: MakeRow
) -> None:
    optimizer = OptimizerSpec.model_validate({"learning_rate": 0.1, "schedule": schedule, "warmup_steps": 2})
    dealt = recipe([make_row(5, seed=0)], optimizer=optimizer, steps=6)
    assert [dealt.adam(step).learning_rate for step in range(1, 7)] == pytest.approx(
        [s * 0.1 for s in shares], rel=1e-4
    )
