"""Our losses against values that other packages computed; tests/oracles/make_loss_references.py says how."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from openmint_trainer.losses import LossInputs, distillation_advantages, find_loss

FILE = Path(__file__).parents[2] / "oracles" / "loss_references.json"
DOCUMENT: dict[str, Any] = json.loads(FILE.read_text())
CASE = {name: torch.tensor(values, dtype=torch.float64) for name, values in DOCUMENT["case"].items()}


def name_of(reference: dict[str, Any]) -> str:
    return f"{reference['loss']}, {reference['package']}, {len(reference['config'])} settings"


def inputs_of(reference: dict[str, Any]) -> LossInputs:
    rows, length = CASE["logprobs"].shape
    return LossInputs(
        logprobs=CASE["logprobs"].flatten().requires_grad_(),
        weights=torch.tensor(reference["weights"], dtype=torch.float64).flatten(),
        sampler_logprobs=CASE[reference.get("sampler", "sampler_logprobs")].flatten(),
        advantages=CASE["advantages"].flatten(),
        reference_logprobs=CASE["reference_logprobs"].flatten(),
        rows=(length,) * rows,
    )


@pytest.mark.parametrize("reference", DOCUMENT["references"], ids=name_of)
def test_value_and_gradient_are_those_of_the_other_package(reference: dict[str, Any]) -> None:
    inputs = inputs_of(reference)
    output = find_loss(reference["loss"])(inputs, reference["config"])
    (gradient,) = torch.autograd.grad(output.loss, inputs.logprobs)
    # trl multiplies by a float32 mask and divides by its sum; nothing of ours is below float64 here.
    assert float(output.loss.detach()) == pytest.approx(reference["value"], rel=1e-7)
    expected = [slope for row in reference["gradient"] for slope in row]
    assert gradient.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    if "told" in reference:
        metrics = output.metrics
        assert metrics["preferred_pairs"] / metrics["pairs"] == reference["told"]["accuracy"]
        assert metrics["margin_sum"] / metrics["pairs"] == pytest.approx(reference["told"]["margin"], rel=1e-6)


@pytest.mark.parametrize("loss", ["ppo", "gspo"])
def test_some_reference_clips_some_tokens_and_not_others(loss: str) -> None:
    """Else an oracle that clips nowhere would prove nothing."""
    metrics = [
        find_loss(loss)(inputs_of(reference), reference["config"]).metrics
        for reference in DOCUMENT["references"]
        if reference["loss"] == loss
    ]
    assert any(0 < m["clipped_tokens"] < m["ratio_tokens"] for m in metrics)


def test_discounted_gains_of_a_teacher_are_those_of_the_other_package() -> None:
    told = DOCUMENT["distillation"]
    ours = distillation_advantages(
        CASE["sampler_logprobs"][0],
        CASE["reference_logprobs"][0],
        torch.ones(4, dtype=torch.float64),
        told["coefficient"],
        told["discount"],
    )
    assert ours.tolist() == pytest.approx(told["advantages"], rel=1e-12)
