"""What a base's files say may be trained, without torch, is what the built model is found to have."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from openmint.bases import read_base_folder
from openmint.training_targets import trained_paths
from openmint_trainer.targets import find_targets


@pytest.mark.parametrize(
    "model_type",
    ["llama", "qwen3", "gemma3_text", "qwen3_moe", "gpt_oss", "deepseek_v3", "deepseek_v32", "glm_moe_dsa"],
)
def test_files_and_built_model_agree(
    model_type: str, build_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    """Not Kimi-Linear, whose files name its modules otherwise than transformers builds them."""
    model = build_model(model_type)
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    facts = read_base_folder(tmp_path, "tiny")
    shapes = find_targets(model).shapes
    paths = trained_paths(facts.modules, facts.experts)
    assert set(paths) == set(shapes)
    for path in paths:
        shape = shapes[path]
        expected = (shape.out_features, shape.in_features)
        if shape.experts:
            assert facts.experts[path] == (shape.experts, *expected)
        else:
            assert facts.modules[path] == expected
