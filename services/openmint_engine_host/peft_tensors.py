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
        # The checks have seen to it that a file has one dtype.
        self._dtype = SAFETENSORS_DTYPES[next(iter(self._entries.values()))["dtype"]]
        self._views: dict[tuple[str, str], NDArray[Any]] = {}
        self._modules = frozenset(module for module, _ in self._entries)

    def modules(self) -> frozenset[str]:
        """The base's module paths that have a pair."""
        return self._modules

    def part_experts(self, known: Mapping[str, tuple[int, int]], rank: int) -> None:
        """Offer an adapter on fused expert weights as pairs of each expert's own gate, up and down projection.

        `known` are the engine's modules (out, in). A has the expert slowest, B has it fastest, and the fused gate_up
        has the gate's outputs first; the gate and the up projection share its A.
        """
        for module in sorted({module for module, _ in self._entries if _layer_of(module)}):
            layer = _layer_of(module)
            a, b = self._array(module, "A"), self._array(module, "B")
            count = a.shape[0] // rank
            if (a.shape[0], b.shape[1]) != (count * rank, rank * count):
                raise BadLayout(f"{module} has {a.shape[0]} rows of A and {b.shape[1]} columns of B at rank {rank}")
            is_down = known.get(f"{layer}.0.down_proj") == (b.shape[0], a.shape[1])
            half = b.shape[0] // 2
            rows = {"down_proj": slice(None)} if is_down else {"gate_proj": slice(half), "up_proj": slice(half, None)}
            for expert in range(count):
                for name, outputs in rows.items():
                    self._views[f"{layer}.{expert}.{name}", "A"] = a[expert * rank : (expert + 1) * rank]
                    self._views[f"{layer}.{expert}.{name}", "B"] = b[outputs, expert::count]
            del self._entries[module, "A"], self._entries[module, "B"]
        self._modules = frozenset(module for module, _ in (*self._entries, *self._views))

    def read(self, modules: Sequence[str], kind: str, shape: tuple[int, int]) -> tuple[NDArray[Any], str]:
        """A (`kind` "A") or B of some modules, one below the other, in the file's own dtype, and its name.

        Raises: BadLayout when one of them has none, one of another shape than `shape`, or a value that no trained
            adapter has (NaN, infinite, or above MAX_ABS).
        """
        arrays: list[NDArray[Any]] = []
        for module in modules:
            try:
                array = self._array(module, kind)
            except KeyError:
                raise BadLayout(f"{module} has no lora_{kind}") from None
            if array.shape != shape:
                raise BadLayout(f"lora_{kind} of {module} is of shape {list(array.shape)}; the engine needs {shape}")
            arrays.append(array)
        stored = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        if _largest(stored, self._dtype) > _LARGEST_ALLOWED[self._dtype]:
            raise BadLayout(f"lora_{kind} of {modules[0]} has values that are not finite or above {MAX_ABS:g}")
        return stored, self._dtype

    def _array(self, module: str, kind: str) -> NDArray[Any]:
        view = self._views.get((module, kind))
        if view is not None:
            return view
        entry = self._entries[module, kind]
        start, end = entry["data_offsets"]
        return self._data[start:end].view(STORAGE[self._dtype]).reshape(entry["shape"])


def _layer_of(module: str) -> str:
    """The experts that a module of fused expert weights is the wrapper of; empty when it is none."""
    layer = module.removesuffix(".base_layer")
    return layer if layer.endswith(".experts") else ""


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


_LARGEST_ALLOWED: Mapping[str, int] = {
    dtype: _largest(encode(np.array([MAX_ABS], np.float32), dtype), dtype) for dtype in STORAGE
}
