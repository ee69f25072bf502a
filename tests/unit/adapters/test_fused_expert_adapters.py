"""Adapters on fused expert weights, as stock PEFT writes them, checked by name and shape."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from openmint.adapters.checks import check_adapter_folder
from openmint.adapters.manifest import Manifest
from openmint.bases import BaseFacts
from openmint.errors import BadAdapter

RANK = 4
LAYER = "model.layers.1.mlp.experts"
PREFIX = f"base_model.model.{LAYER}"


@pytest.fixture
def moe_base(base: BaseFacts) -> BaseFacts:
    experts = {f"{LAYER}.gate_up_proj": (3, 24, 16), f"{LAYER}.down_proj": (3, 16, 12)}
    modules = {"model.layers.1.self_attn.q_proj": (16, 16)}
    # Files of this base hold each expert's own linears too; they are no part of an adapter on the fused weights.
    modules |= {f"{LAYER}.{n}.down_proj": (16, 12) for n in range(3)}
    return replace(base, modules=modules, targets=("down_proj", "q_proj"), experts=experts)


def write(folder: Path, base: BaseFacts, **changes: object) -> Path:
    shapes: dict[str, tuple[int, int]] = {
        f"{PREFIX}.base_layer.lora_A.weight": (3 * RANK, 16),
        f"{PREFIX}.base_layer.lora_B.weight": (24, RANK * 3),
        f"{PREFIX}.lora_A.weight": (3 * RANK, 12),
        f"{PREFIX}.lora_B.weight": (16, RANK * 3),
        "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight": (RANK, 16),
        "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight": (16, RANK),
    }
    config: dict[str, object] = {
        "peft_type": "LORA",
        "base_model_name_or_path": base.name,
        "r": RANK,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    }
    for name, change in changes.items():
        if name in ("target_parameters", "target_modules"):
            config[name] = change
    tensors = {name: np.full(shape, 0.01, np.float32) for name, shape in shapes.items() if name != changes.get("lacks")}
    if "misshapen" in changes:
        tensors[str(changes["misshapen"])] = np.zeros((5, 5), np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_it_passes_and_its_manifest_names_the_parameters(tmp_path: Path, moe_base: BaseFacts):
    facts = check_adapter_folder(write(tmp_path, moe_base), moe_base)
    assert facts.targets == ("q_proj",)
    assert facts.parameters == ("mlp.experts.down_proj", "mlp.experts.gate_up_proj")
    manifest = Manifest.of(facts, moe_base.digest)
    assert manifest.targets == ["mlp.experts.down_proj", "mlp.experts.gate_up_proj", "q_proj"]
    assert f"{PREFIX}.base_layer.lora_B.weight" in manifest.tensors


@pytest.mark.parametrize("name", [f"{PREFIX}.base_layer.lora_A.weight", f"{PREFIX}.lora_B.weight"])
def test_a_missing_or_misshapen_tensor_is_refused_by_name(tmp_path: Path, moe_base: BaseFacts, name: str):
    with pytest.raises(BadAdapter, match="is missing") as caught:
        check_adapter_folder(write(tmp_path, moe_base, lacks=name), moe_base)
    assert name in caught.value.detail
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(BadAdapter, match="has shape") as caught:
        check_adapter_folder(write(tmp_path, moe_base, misshapen=name), moe_base)
    assert name in caught.value.detail


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["mlp.experts.w1"], "is none of mlp.experts.down_proj, mlp.experts.gate_up_proj"),
        ("mlp.experts.down_proj", "not a list"),
        (["mlp.experts.down_proj", "mlp.experts.down_proj"], "twice"),
        ([1], "is none of"),
    ],
)
def test_parameters_that_the_base_has_not_are_refused(tmp_path: Path, moe_base: BaseFacts, given: object, reason: str):
    with pytest.raises(BadAdapter, match=reason) as caught:
        check_adapter_folder(write(tmp_path, moe_base, target_parameters=given), moe_base)
    assert caught.value.field == "target_parameters"


def test_tensors_of_experts_that_the_configuration_does_not_name_are_refused(tmp_path: Path, moe_base: BaseFacts):
    with pytest.raises(BadAdapter, match="names no module"):
        check_adapter_folder(write(tmp_path, moe_base, target_parameters=[]), moe_base)
