"""Targets come from the built model."""

from collections.abc import Callable

import pytest
from transformers import LlamaForCausalLM

from openmint.errors import BadRequest
from openmint_trainer.targets import choose_targets, find_targets


def test_every_linear_under_a_decoder_layer_is_found_and_the_head_is_not(
    make_model: Callable[..., LlamaForCausalLM],
) -> None:
    found = find_targets(make_model())
    assert len(found) == 2 * 7
    assert "model.layers.1.mlp.down_proj" in found
    assert not any("lm_head" in path for path in found)


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
