"""What of each architecture is trained unless somebody asks for less, and what can't be had."""

from collections.abc import Callable

import pytest
from transformers import PreTrainedModel

from openmint.errors import BadRequest
from openmint.training_targets import choose_targets
from openmint_trainer.targets import find_targets

Build = Callable[..., PreTrainedModel]
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
DENSE = {"gate_proj", "up_proj", "down_proj"}
EXPERTS = {"gate_up_proj", "down_proj"}
LATENT = {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"}
DELTA = {"b_proj", "f_a_proj", "f_b_proj", "g_a_proj", "g_b_proj", "kv_a_proj_with_mqa"}

EXPECTED = {
    "llama": ATTENTION | DENSE,
    "qwen3": ATTENTION | DENSE,
    "gemma3_text": ATTENTION | DENSE,
    "qwen3_moe": ATTENTION | EXPERTS,
    "gpt_oss": ATTENTION | EXPERTS,
    "deepseek_v3": LATENT | EXPERTS,
    "deepseek_v32": LATENT | EXPERTS,
    "glm_moe_dsa": LATENT | EXPERTS,
    "kimi_linear": ATTENTION | DELTA | EXPERTS,
}


def test_the_default_is_everything_that_can_be_trained_exported_and_served(model_type: str, build_model: Build) -> None:
    shapes = find_targets(build_model(model_type)).shapes
    assert set(choose_targets(None, shapes)) == EXPECTED[model_type]
    fused = {path.rpartition(".")[2] for path, shape in shapes.items() if shape.experts}
    assert fused == (EXPERTS if "gate_up_proj" in EXPECTED[model_type] else set())


@pytest.mark.parametrize(
    ("model_type", "name", "reason"),
    [
        ("deepseek_v3", "kv_b_proj", "engines fold kv_b_proj into others and ignore"),
        ("kimi_linear", "kv_b_proj", "engines fold kv_b_proj into others and ignore"),
        ("deepseek_v32", "wq_b", "not differentiable"),
        ("glm_moe_dsa", "wk", "not differentiable"),
        ("glm_moe_dsa", "weights_proj", "not differentiable"),
        ("qwen3_moe", "gate", "no engine serves an adapter on a router"),
        ("gpt_oss", "router", "no engine serves an adapter on a router"),
        ("deepseek_v3", "gate_proj", "taken by PEFT for the routed experts' own"),
    ],
)
def test_asking_for_what_can_not_be_had_says_why(model_type: str, name: str, reason: str, build_model: Build) -> None:
    shapes = find_targets(build_model(model_type)).shapes
    with pytest.raises(BadRequest, match=reason) as caught:
        choose_targets(["o_proj", name], shapes)
    assert caught.value.field == "adapter.targets"
