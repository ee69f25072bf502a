"""Adapters to check: a good one, and what it takes to spoil it."""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openmint.bases import BaseFacts

RANK = 4
ALPHA = 8.0
TARGETS = ("q_proj", "v_proj")
ELEMENT_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "F64": 8}


def tiny_base(name: str = "tiny", digest: str = "sha256:" + "a" * 64) -> BaseFacts:
    """Two layers of width 16, with attention of unlike sizes, so that no shape fits by accident."""
    modules: dict[str, tuple[int, int]] = {}
    for layer in range(2):
        head = f"model.layers.{layer}"
        modules[f"{head}.self_attn.q_proj"] = (16, 16)
        modules[f"{head}.self_attn.v_proj"] = (8, 16)
        modules[f"{head}.mlp.down_proj"] = (16, 24)
    return BaseFacts(
        name=name,
        digest=digest,
        model_type="llama",
        architecture="LlamaForCausalLM",
        modules=modules,
        targets=("down_proj", "q_proj", "v_proj"),
        max_positions=64,
        vocab_size=128,
        hidden_size=16,
        layers=2,
        dtype="float32",
        has_chat_template=False,
        files={},
    )


def as_bf16(values: np.ndarray) -> np.ndarray:
    """The upper halves of float32s."""
    return (np.asarray(values, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)


@dataclass
class Draft:
    """An adapter about to be written; a test spoils what it is about."""

    config: dict[str, Any]
    tensors: dict[str, tuple[str, np.ndarray]]
    """name -> (safetensors dtype, array whose bytes are written)"""

    extra_files: dict[str, bytes] = field(default_factory=dict)
    config_bytes: bytes | None = None
    weights_bytes: bytes | None = None

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        config = json.dumps(self.config).encode() if self.config_bytes is None else self.config_bytes
        weights = safetensors_bytes(self.tensors) if self.weights_bytes is None else self.weights_bytes
        (folder / "adapter_config.json").write_bytes(config)
        (folder / "adapter_model.safetensors").write_bytes(weights)
        for name, content in self.extra_files.items():
            (folder / name).write_bytes(content)
        return folder

    def name_of(self, module: str, half: str) -> str:
        return f"base_model.model.model.layers.{module}.lora_{half}.weight"

    def array(self, name: str) -> np.ndarray:
        return self.tensors[name][1]

    def put(self, name: str, array: np.ndarray) -> None:
        self.tensors[name] = (self.tensors.get(name, ("F32",))[0], array)

    def rename(self, old: str, new: str) -> None:
        self.tensors = {new if name == old else name: value for name, value in self.tensors.items()}


def safetensors_bytes(tensors: Mapping[str, tuple[str, np.ndarray]]) -> bytes:
    """The file's bytes, written by hand: the library would refuse some of what tests need."""
    header: dict[str, Any] = {}
    blob = b""
    for name, (dtype, array) in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(blob), len(blob) + len(raw)]}
        blob += raw
    return raw_safetensors(json.dumps(header).encode(), blob)


def raw_safetensors(header: bytes, blob: bytes = b"", length: int | None = None) -> bytes:
    """A file with exactly this header, claiming `length` bytes of it."""
    return struct.pack("<Q", len(header) if length is None else length) + header + blob


def good_draft(base: BaseFacts, rank: int = RANK, seed: int = 0, dtype: str = "F32") -> Draft:
    """A plain adapter of `base` on q_proj and v_proj."""
    random = np.random.default_rng(seed)
    tensors: dict[str, tuple[str, np.ndarray]] = {}
    for module, (out_size, in_size) in base.modules.items():
        if module.rpartition(".")[2] not in TARGETS:
            continue
        for half, shape in (("lora_A", (rank, in_size)), ("lora_B", (out_size, rank))):
            values = random.normal(0, 0.1, shape).astype(np.float32)
            array = as_bf16(values) if dtype == "BF16" else values.astype({"F32": "f4", "F16": "f2"}[dtype])
            tensors[f"base_model.model.{module}.{half}.weight"] = (dtype, array)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": rank,
        "lora_alpha": ALPHA,
        "target_modules": list(TARGETS),
        "bias": "none",
    }
    return Draft(config, tensors)


@pytest.fixture
def draft_of() -> Callable[..., Draft]:
    """`draft_of(base, rank=…, seed=…, dtype=…)`."""
    return good_draft


@pytest.fixture
def raw_file() -> Callable[..., bytes]:
    """`raw_file(header, blob=b"", length=None)`: the bytes of a safetensors file with exactly this header."""
    return raw_safetensors


@pytest.fixture
def base() -> BaseFacts:
    """A base of two layers."""
    return tiny_base()


@pytest.fixture
def draft(base: BaseFacts) -> Draft:
    """A good adapter, not yet written."""
    return good_draft(base)
