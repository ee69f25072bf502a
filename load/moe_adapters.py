"""Random adapters of a mixture-of-experts base, as stock PEFT folders with one LoRA pair per expert."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from openmint.adapters.facts import CONFIG_FILE, TENSOR_PREFIX, WEIGHTS_FILE
from openmint.bases import BaseFacts

STRENGTH = 0.05
"""Standard deviation of lora_B: logprobs move by tenths of a nat, so no answer can be taken for the base's."""


def write_adapter(
    folder: Path, base: BaseFacts, seed: int, rank: int = 8, strength: float = STRENGTH, dtype: str = "bfloat16"
) -> None:
    """Write a random adapter on every module of a base that takes LoRA, each expert with its own pair.

    8 layers of 64 experts at rank 8 make 18 MB in bfloat16.
    """
    import torch
    from safetensors.torch import save_file as save_tensors

    random = np.random.default_rng(seed)
    tensors: dict[str, NDArray[np.float32]] = {}
    for module, (out_size, in_size) in base.modules.items():
        a = random.standard_normal((rank, in_size), dtype=np.float32) / np.float32(in_size**0.5)
        b = random.standard_normal((out_size, rank), dtype=np.float32) * np.float32(strength)
        tensors[f"{TENSOR_PREFIX}{module}.lora_A.weight"] = a
        tensors[f"{TENSOR_PREFIX}{module}.lora_B.weight"] = b
    folder.mkdir(parents=True, exist_ok=True)
    if dtype == "float32":
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    else:
        rounded = {name: torch.from_numpy(values).to(getattr(torch, dtype)) for name, values in tensors.items()}
        save_tensors(rounded, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(base.targets),
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1))
