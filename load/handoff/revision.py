"""A random revision as a trainer leaves it: a checkpoint file with its optimizer state."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from openmint.bases import BaseFacts

RANK = 8
ALPHA = 16.0
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

STRENGTH = 0.02
"""Standard deviation of lora_B: logprobs move by tenths of a nat, so no answer can be taken for the base's."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What the catalogue would say of it: the trainer knows the digest from writing the file."""

    path: Path
    sha256: bytes


def write_checkpoint(path: Path, base: BaseFacts, seed: int) -> Checkpoint:
    """Write the checkpoint of one random rank 8 adapter on all linear modules."""
    random = np.random.default_rng(seed)
    tensors: dict[str, NDArray[np.float32]] = {}
    for module, (out_size, in_size) in base.modules.items():
        if module.rpartition(".")[2] not in TARGETS:
            continue
        halves = {
            "lora_A": random.standard_normal((RANK, in_size), dtype=np.float32) / np.float32(in_size**0.5),
            "lora_B": random.standard_normal((out_size, RANK), dtype=np.float32) * np.float32(STRENGTH),
        }
        for half, values in halves.items():
            tensors[f"adapter.{module}.{half}"] = values
            tensors[f"adam_m.{module}.{half}"] = np.zeros_like(values)
            tensors[f"adam_v.{module}.{half}"] = np.zeros_like(values)
    meta = {
        "format": 1,
        "base": base.name,
        "base_digest": base.digest,
        "rank": RANK,
        "alpha": ALPHA,
        "targets": list(TARGETS),
        "step": 1,
        "adam_step": 1,
        "tokens": 0,
        "cursor": {},
        "random_state": {},
        "seed": seed,
        "recipe": {},
    }
    save_file(tensors, path, metadata={"openmint": json.dumps(meta)})
    with path.open("rb") as file:
        return Checkpoint(path, hashlib.file_digest(file, "sha256").digest())
