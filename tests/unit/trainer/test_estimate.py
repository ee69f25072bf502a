"""The dry run adds up what a job will process."""

from collections.abc import Callable

import pytest

from openmint.errors import BadRequest
from openmint.events import TrainRequested
from openmint_trainer.estimate import Estimate, estimate
from openmint_trainer.rows import Row

MODULES = {"m.layers.0.q_proj": (64, 32), "m.layers.0.o_proj": (32, 64)}


def estimated(rows: list[Row], targets: list[str] | None = None, **training: int) -> Estimate:
    spec = TrainRequested.model_validate(
        {
            "policy": "p",
            "base": "b",
            "dataset": {"digest": "sha256:" + "0" * 64},
            "adapter": {"rank": 4, "targets": targets},
            "training": training,
        }
    )
    return estimate(spec, rows, MODULES, tokens_per_s=100.0)


def test_tokens_and_seconds_follow_from_steps_and_rows(make_row: Callable[..., Row]) -> None:
    rows = [make_row(10, seed=0, trained=2), make_row(30, seed=1, trained=3)]
    result = estimated(rows, steps=5, batch_rows=4)
    assert (result.rows, result.tokens_in_dataset, result.trained_tokens_in_dataset) == (2, 40, 5)
    assert result.longest_row == 30
    assert (result.tokens, result.seconds, result.epochs) == (400, 4.0, 10.0)
    assert result.adapter_parameters == 4 * (96 + 96)
    assert result.slot_bytes == 18 * 8 * (96 + 96)


def test_a_preference_counts_as_one_row_and_the_base_is_asked_about_it_once(make_row: Callable[..., Row]) -> None:
    pairs = [make_row(10 + i, seed=i) for i in range(8)]
    spec = TrainRequested.model_validate(
        {
            "policy": "p",
            "base": "b",
            "recipe": "dpo",
            "dataset": {"digest": "sha256:" + "0" * 64},
            "training": {"steps": 6, "batch_rows": 2},
        }
    )
    result = estimate(spec, pairs, MODULES, tokens_per_s=100.0)
    assert (result.rows, result.tokens_in_dataset, result.epochs) == (4, 108, 3.0)
    assert (result.tokens, result.reference_tokens) == (324, 108)
    assert result.seconds == pytest.approx(3.24 + 0.54, abs=0.05)
    once = estimate(
        spec.model_copy(update={"training": spec.training.model_copy(update={"steps": 1})}), pairs, MODULES, 100.0
    )
    assert once.reference_tokens == 54


def test_a_loss_that_the_recipe_does_not_take_is_refused_by_the_dry_run(make_row: Callable[..., Row]) -> None:
    spec = TrainRequested.model_validate(
        {
            "policy": "p",
            "base": "b",
            "loss": {"name": "ppo"},
            "dataset": {"digest": "sha256:" + "0" * 64},
        }
    )
    with pytest.raises(BadRequest, match="recipe sft does not take loss ppo; it takes cross_entropy"):
        estimate(spec, [make_row(10, seed=0)], MODULES)


def test_only_the_targets_count_and_unknown_ones_are_named(make_row: Callable[..., Row]) -> None:
    assert estimated([make_row(10, seed=0)], targets=["q_proj"]).adapter_parameters == 4 * 96
    with pytest.raises(BadRequest, match="'w1' is not a linear"):
        estimated([make_row(10, seed=0)], targets=["w1"])


def test_a_dataset_too_small_or_too_large_for_its_steps_is_warned_of(make_row: Callable[..., Row]) -> None:
    few = [make_row(10, seed=0)]
    assert any("by heart" in text for text in estimated(few, steps=100).warnings)
    assert any("more than once" in text for text in estimated(few, steps=1).warnings)
    many = [make_row(10, seed=i) for i in range(40)]
    assert estimated(many, steps=1, batch_rows=10).warnings == ("only 25 % of the rows are seen",)
