"""What a good adapter is, and what the checks find out about it."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from openmint.adapters.checks import check_adapter_folder
from openmint.adapters.facts import AdapterFacts, AdapterLimits


@pytest.mark.parametrize(
    ("dtype", "name"), [("F32", "float32"), ("BF16", "bfloat16"), ("F16", "float16")], ids=lambda value: value
)
def test_a_plain_adapter_passes_in_each_dtype(dtype, name, base, draft_of, tmp_path):
    folder = draft_of(base, dtype=dtype).write(tmp_path / "a")
    facts = check_adapter_folder(folder, base)
    assert (facts.base, facts.rank, facts.alpha, facts.targets) == ("tiny", 4, 8.0, ("q_proj", "v_proj"))
    assert facts.dtype == name and len(facts.tensors) == 8 and not facts.is_zero and facts.digest is None
    weights = (folder / "adapter_model.safetensors").read_bytes()
    assert facts.files["adapter_model.safetensors"].sha256 == hashlib.sha256(weights).hexdigest()
    assert facts.adapter_bytes == sum(os.path.getsize(folder / file) for file in facts.files)  # noqa: PTH202


def test_values_are_measured_as_numpy_measures_them(base, draft, tmp_path):
    facts = check_adapter_folder(draft.write(tmp_path / "a"), base)
    assert facts.max_abs == max(float(np.abs(array).max()) for _, array in draft.tensors.values())
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert facts.tensors[name].sha256 == hashlib.sha256(draft.array(name).tobytes()).hexdigest()


def test_an_adapter_of_zeros_is_told(base, draft, tmp_path):
    for name in draft.tensors:
        if "lora_B" in name:
            draft.array(name)[:] = 0
    assert check_adapter_folder(draft.write(tmp_path / "a"), base).is_zero


def test_the_fields_that_stock_peft_writes_pass(base, draft, tmp_path):
    draft.config |= {
        "auto_mapping": None,
        "peft_version": "0.21.2",
        "inference_mode": True,
        "lora_dropout": 0.05,
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "loftq_config": {},
        "megatron_core": "megatron.core",
        "qalora_group_size": 16,
    }
    assert check_adapter_folder(draft.write(tmp_path / "a"), base).rank == 4


def test_a_foreign_name_of_the_base_passes_only_when_accepted(base, draft, tmp_path):
    draft.config["base_model_name_or_path"] = "someone/tiny-hub-name"
    limits = AdapterLimits(accepted_base_names=("someone/tiny-hub-name",))
    assert check_adapter_folder(draft.write(tmp_path / "a"), base, limits).base == "tiny"


def test_tensors_in_another_order_are_the_same_adapter(base, draft, tmp_path):
    first = check_adapter_folder(draft.write(tmp_path / "a"), base)
    draft.tensors = dict(reversed(draft.tensors.items()))
    second = check_adapter_folder(draft.write(tmp_path / "b"), base)
    assert first.tensors == second.tensors


def test_facts_survive_the_way_through_json(base, draft, tmp_path: Path):
    facts = check_adapter_folder(draft.write(tmp_path / "a"), base)
    assert AdapterFacts.from_json(facts.as_json()) == facts
