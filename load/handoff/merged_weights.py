"""An adapter merged into its base's weights, and the model folder that a stock engine reads."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from load.handoff.revision import ALPHA, RANK
from openmint.adapters.facts import TENSOR_PREFIX, WEIGHTS_FILE

MODEL_FILE = "model.safetensors"

MERGE_THREADS = 1
"""Hundreds of small products: a second thread saves 0.05 s of 0.15 s on an idle machine of two cores, and costs seconds
where each product waits for a thread whose core an engine holds."""

Weights = Mapping[str, torch.Tensor]


def read_base_weights(base_folder: Path) -> dict[str, torch.Tensor]:
    """Every weight of a base model, in memory and in its own dtype."""
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(base_folder.glob("*.safetensors")):
        weights |= {name: tensor.clone() for name, tensor in load_file(file).items()}
    return weights


def read_adapter(revision_folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of an exported revision, so that both ways serve the same, rounded values."""
    return load_file(revision_folder / WEIGHTS_FILE)


@torch.inference_mode()
def merge(base: Weights, adapter: Weights, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """W + alpha / rank * B A, summed in float32 and rounded to `dtype`, by default the base's own."""
    torch.set_num_threads(MERGE_THREADS)
    merged = dict(base)
    for name, a in adapter.items():
        if not name.endswith(".lora_A.weight"):
            continue
        module = name.removeprefix(TENSOR_PREFIX).removesuffix(".lora_A.weight")
        b = adapter[f"{TENSOR_PREFIX}{module}.lora_B.weight"]
        weight = base[f"{module}.weight"]
        whole = torch.addmm(weight.float(), b.float(), a.float(), alpha=ALPHA / RANK)
        merged[f"{module}.weight"] = whole.to(dtype or weight.dtype)
    return merged


def prepare_folder(base_folder: Path, folder: Path) -> None:
    """A model folder with everything but weights: configuration and tokenizer of the base."""
    folder.mkdir()
    for file in base_folder.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and not file.name.startswith("."):
            shutil.copy(file, folder / file.name)


def save(weights: Weights, folder: Path) -> int:
    """Write the weights so that they survive a power cut, as the store does with an adapter; the bytes."""
    path = folder / MODEL_FILE
    save_file(dict(weights), path, metadata={"format": "pt"})
    for entry in (path, folder):
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return path.stat().st_size
