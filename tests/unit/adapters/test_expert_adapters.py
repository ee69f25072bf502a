"""Adapters of a mixture-of-experts base: one LoRA pair per expert, each checked by name and shape."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from load.moe_adapters import write_adapter
from openmint.adapters.checks import check_adapter_folder
from openmint.adapters.manifest import Manifest
from openmint.bases import BaseFacts
from openmint.errors import BadAdapter

RANK, EXPERTS, LAYERS = 4, 3, 2
EXPERT = "model.layers.1.mlp.experts.2"


@pytest.fixture
def moe_base(base: BaseFacts) -> BaseFacts:
    modules: dict[str, tuple[int, int]] = {}
    for layer in range(LAYERS):
        modules[f"model.layers.{layer}.self_attn.q_proj"] = (16, 16)
        for expert in range(EXPERTS):
            head = f"model.layers.{layer}.mlp.experts.{expert}"
            modules |= {f"{head}.gate_proj": (12, 16), f"{head}.up_proj": (12, 16), f"{head}.down_proj": (16, 12)}
    return replace(base, modules=modules, targets=("down_proj", "gate_proj", "q_proj", "up_proj"))


def write(folder: Path, base: BaseFacts, changes: dict[str, np.ndarray | None]) -> Path:
    """An adapter with some tensors replaced, or left out."""
    from safetensors.numpy import load_file, save_file

    write_adapter(folder, base, seed=0, rank=RANK, strength=0.1, dtype="float32")
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, array in changes.items():
        del tensors[name]
        if array is not None:
            tensors[name] = array
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def name_of(module: str, half: str) -> str:
    return f"base_model.model.{module}.lora_{half}.weight"


def test_an_adapter_on_every_expert_passes_with_every_tensor_in_its_manifest(tmp_path: Path, moe_base: BaseFacts):
    facts = check_adapter_folder(write(tmp_path, moe_base, {}), moe_base)
    assert len(facts.tensors) == 2 * len(moe_base.modules)
    assert facts.targets == moe_base.targets
    assert facts.tensors[name_of(f"{EXPERT}.down_proj", "B")].shape == (16, RANK)
    assert name_of(f"{EXPERT}.gate_proj", "A") in Manifest.of(facts, moe_base.digest).as_json()["tensors"]


@pytest.mark.parametrize("projection", ["gate_proj", "up_proj", "down_proj"])
@pytest.mark.parametrize("half", ["A", "B"])
def test_an_expert_without_its_tensor_is_refused_by_name(
    tmp_path: Path, moe_base: BaseFacts, projection: str, half: str
):
    name = name_of(f"{EXPERT}.{projection}", half)
    with pytest.raises(BadAdapter, match="is missing") as caught:
        check_adapter_folder(write(tmp_path, moe_base, {name: None}), moe_base)
    assert name in caught.value.detail


@pytest.mark.parametrize(
    ("half", "shape"), [("A", (RANK, 12)), ("A", (RANK + 1, 16)), ("B", (16, RANK)), ("B", (12, RANK - 1))]
)
def test_an_expert_with_a_tensor_of_another_shape_or_rank_is_refused_by_name(
    tmp_path: Path, moe_base: BaseFacts, half: str, shape: tuple[int, int]
):
    name = name_of(f"{EXPERT}.up_proj", half)
    with pytest.raises(BadAdapter, match="has shape") as caught:
        check_adapter_folder(write(tmp_path, moe_base, {name: np.zeros(shape, np.float32)}), moe_base)
    assert name in caught.value.detail


def test_an_expert_that_the_base_has_not_is_refused_by_name(tmp_path: Path, moe_base: BaseFacts):
    more = dict(moe_base.modules)
    more["model.layers.0.mlp.experts.3.gate_proj"] = (12, 16)
    write_adapter(tmp_path, replace(moe_base, modules=more), seed=0, rank=RANK, strength=0.1, dtype="float32")
    with pytest.raises(BadAdapter, match=r"experts\.3\.gate_proj"):
        check_adapter_folder(tmp_path, moe_base)


def test_the_router_takes_no_adapter(tmp_path: Path, moe_base: BaseFacts):
    more = moe_base.modules | {"model.layers.0.mlp.gate": (EXPERTS, 16)}
    targets = (*moe_base.targets, "gate")
    write_adapter(
        tmp_path, replace(moe_base, modules=more, targets=targets), seed=0, rank=RANK, strength=0.1, dtype="float32"
    )
    with pytest.raises(BadAdapter, match="gate"):
        check_adapter_folder(tmp_path, moe_base)


def test_one_value_of_one_expert_that_is_not_finite_is_refused(tmp_path: Path, moe_base: BaseFacts):
    spoilt = np.zeros((16, RANK), np.float32)
    spoilt[3, 2] = np.nan
    name = name_of(f"{EXPERT}.down_proj", "B")
    with pytest.raises(BadAdapter, match="NaN") as caught:
        check_adapter_folder(write(tmp_path, moe_base, {name: spoilt}), moe_base)
    assert name in caught.value.detail
