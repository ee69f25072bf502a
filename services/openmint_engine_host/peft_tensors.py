"""The tensors of a PEFT file that has passed the checks, as numpy arrays; and the dtypes that numpy lacks."""

import json
import struct
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from openmint.adapters.facts import SAFETENSORS_DTYPES, TENSOR_PREFIX

WIDTH_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class BadLayout(ValueError):
    """A file or a module table that can't be a layout of this engine."""


class PeftTensors:
    """Raw tensors of a PEFT file that has passed the checks."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            header = cast(dict[str, Any], json.loads(file.read(length)))
        self._data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length) if header else np.empty(0, np.uint8)
        self._entries: dict[tuple[str, str], dict[str, Any]] = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            module, _, kind = name.removeprefix(TENSOR_PREFIX).removesuffix(".weight").rpartition(".lora_")
            self._entries[module, kind] = entry
        self._modules = frozenset(module for module, _ in self._entries)

    def modules(self) -> frozenset[str]:
        """The base's module paths that have a pair."""
        return self._modules

    def read(self, module: str, kind: str) -> NDArray[np.float32]:
        """`kind` is A or B. Raises: BadLayout when the module has none."""
        try:
            entry = self._entries[module, kind]
        except KeyError:
            raise BadLayout(f"{module} has no lora_{kind}") from None
        start, end = entry["data_offsets"]
        dtype = SAFETENSORS_DTYPES[entry["dtype"]]
        raw = np.array(self._data[start:end])
        storage = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.float16}[dtype]
        return decode(raw.view(storage).reshape(entry["shape"]), dtype)


def decode(array: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Numbers of a dtype as float32; bfloat16 comes as its 16 bits, which numpy has no type for."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def encode(array: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Float32 rounded to nearest even in a dtype, as torch does it. Finite values only."""
    if dtype == "bfloat16":
        bits = array.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return array.astype(np.float16 if dtype == "float16" else np.float32)
