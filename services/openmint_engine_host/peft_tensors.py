"""The tensors of a PEFT file that has passed the checks, as numpy arrays; and the dtypes that numpy lacks."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from openmint.adapters.facts import SAFETENSORS_DTYPES, TENSOR_PREFIX, AdapterLimits

STORAGE: Mapping[str, type[np.generic]] = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.float16}
"""How numpy keeps the numbers of a dtype; bfloat16 as its 16 bits, which numpy has no type for."""


MAX_ABS = AdapterLimits().max_abs
"""Of one weight, as the checks have it: looked at once more, because one NaN would poison those beside it."""


class BadLayout(ValueError):
    """A file or a module table that can't be a layout of this engine."""


class PeftTensors:
    """Raw tensors of a PEFT file that has passed the checks."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            header = cast(dict[str, Any], json.loads(file.read(length)))
        # A plain view: slices of a memmap itself cost ten times as much.
        self._data: NDArray[np.uint8] = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))[8 + length :]
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

    def read(self, modules: Sequence[str], kind: str, shape: tuple[int, int]) -> tuple[NDArray[Any], str]:
        """A (`kind` "A") or B of some modules, one below the other, in the file's own dtype, and its name.

        Raises: BadLayout when one of them has none, one of another shape than `shape`, or a value that no trained
            adapter has (NaN, infinite, or above MAX_ABS).
        """
        arrays: list[NDArray[Any]] = []
        found = ""
        for module in modules:
            try:
                entry = self._entries[module, kind]
            except KeyError:
                raise BadLayout(f"{module} has no lora_{kind}") from None
            if tuple(entry["shape"]) != shape:
                raise BadLayout(f"lora_{kind} of {module} is of shape {entry['shape']}; the engine needs {shape}")
            start, end = entry["data_offsets"]
            arrays.append(self._data[start:end])
            found = SAFETENSORS_DTYPES[entry["dtype"]]
        # The checks have seen to it that a file has one dtype, and that its tensors have the bytes of their shapes.
        joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        stored = joined.view(STORAGE[found]).reshape(len(arrays) * shape[0], shape[1])
        if _largest(stored, found) > _largest(_BOUNDS[found], found):
            raise BadLayout(f"lora_{kind} of {modules[0]} has values that are not finite or above {MAX_ABS:g}")
        return stored, found


def convert(array: NDArray[Any], found: str, wanted: str) -> NDArray[Any]:
    """Numbers of dtype `found` in the storage of dtype `wanted`."""
    return array if found == wanted else encode(decode(array, found), wanted)


def scaled(array: NDArray[Any], found: str, factor: np.float32, wanted: str) -> NDArray[Any]:
    """The same, multiplied in float32."""
    if factor == 1.0:
        return convert(array, found, wanted)
    wide = decode(array, found)
    np.multiply(wide, factor, out=wide)
    return encode(wide, wanted)


def _largest(array: NDArray[Any], dtype: str) -> int:
    """The bits of the largest magnitude, which order as the magnitudes do, NaN and infinity above all."""
    bits = array.view(np.uint32 if dtype == "float32" else np.uint16)
    return int((bits & (0x7FFFFFFF if dtype == "float32" else 0x7FFF)).max())


def decode(array: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Numbers of a dtype as float32; bfloat16 comes as its 16 bits, which numpy has no type for."""
    if dtype == "bfloat16":
        wide = array.astype(np.uint32)
        np.left_shift(wide, 16, out=wide)
        return wide.view(np.float32)
    return array.astype(np.float32)


def encode(array: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Float32 rounded to nearest even in a dtype, as torch does it. Finite values only."""
    if dtype == "bfloat16":
        bits = array.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return array.astype(np.float16) if dtype == "float16" else array


_BOUNDS: Mapping[str, NDArray[Any]] = {dtype: encode(np.array([MAX_ABS], np.float32), dtype) for dtype in STORAGE}
