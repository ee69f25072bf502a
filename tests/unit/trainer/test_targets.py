"""Targets come from the built model."""

from collections.abc import Callable

import pytest
from transformers import LlamaForCausalLM

from openmint.errors import BadRequest
from openmint.training_targets import choose_targets, trained_paths
from openmint_trainer.targets import find_targets


def test_every_linear_under_a_decoder_layer_is_found_and_the_head_is_not(
    make_model: Callable[..., LlamaForCausalLM],
) -> None:
    found = find_targets(make_model())
    assert len(found.linears) == len(found.shapes) == 2 * 7
    assert not found.experts
    assert "model.layers.1.mlp.down_proj" in found.linears
    assert not any("lm_head" in path for path in found.shapes)


def test_an_unknown_target_is_named_with_the_allowed_ones() -> None:
    with pytest.raises(BadRequest, match=r"'w1' is not a linear of this base; allowed are k_proj, q_proj") as caught:
        choose_targets(["q_proj", "w1"], ["a.layers.0.q_proj", "a.layers.0.k_proj"])
    assert caught.value.field == "adapter.targets"


def test_targets_are_sorted_and_default_to_all() -> None:
    available = ["a.layers.0.q_proj", "a.layers.0.k_proj"]
    assert choose_targets(None, available) == ("k_proj", "q_proj")
    assert choose_targets(["q_proj", "k_proj", "q_proj"], available) == ("k_proj", "q_proj")
    with pytest.raises(BadRequest, match="empty"):
        choose_targets([], available)


def test_files_with_one_linear_per_expert_offer_what_the_built_model_holds_fused() -> None:
    modules = ["l.layers.0.q_proj", "l.layers.0.mlp.gate", "l.layers.0.mlp.experts.0.gate_proj"]
    assert trained_paths(modules, {"l.layers.0.mlp.experts.down_proj": (4, 8, 6)}) == (
        "l.layers.0.q_proj",
        "l.layers.0.mlp.experts.down_proj",
    )
