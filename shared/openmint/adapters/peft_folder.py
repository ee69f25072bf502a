"""A PEFT folder written from LoRA tensors: the canonical form of a revision, the same bytes for the same tensors.

numpy alone: no torch, no time, no host, and no order but that of names.
"""

import json
import os
import struct
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from openmint.adapters.expert_layout import lora_shape, parameter_name, wrapper_modules
from openmint.adapters.facts import CONFIG_FILE, DTYPE_BYTES, SAFETENSORS_DTYPES, TENSOR_PREFIX, WEIGHTS_FILE
from openmint.adapters.safetensors_header import TensorEntry
from openmint.errors import BadAdapter

_DTYPE_CODES = {name: code for code, name in SAFETENSORS_DTYPES.items()}
_HEADER_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class LoraTensors:
    """Tensors of one adapter in an open file: (module, `lora_A` or `lora_B`) -> where it lies.

    Those of fused expert weights have three dimensions, A [E, rank, in] and B [E, out, rank], and the parameter's path.
    """

    descriptor: int
    entries: Mapping[tuple[str, str], TensorEntry]


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """What the configuration says."""

    base: str
    rank: int
    alpha: float
    targets: tuple[str, ...]
    """Last parts of the linears' paths."""

    parameters: tuple[str, ...] = ()
    """Fused expert weights, as `target_parameters` names them."""

    @classmethod
    def of(
        cls,
        base: str,
        rank: int,
        alpha: float,
        targets: Collection[str],
        entries: Mapping[tuple[str, str], TensorEntry],
    ) -> Self:
        """The settings of tensors whose policy adapts `targets`; entries of three dimensions are fused experts'."""
        linears = {module.rpartition(".")[2] for (module, _), entry in entries.items() if len(entry.shape) == 2}
        parameters = {module for (module, _), entry in entries.items() if len(entry.shape) == 3}
        return cls(
            base,
            rank,
            alpha,
            tuple(target for target in targets if target in linears),
            tuple(sorted({parameter_name(path) for path in parameters})),
        )


@contextmanager
def opened(path: Path) -> Generator[int]:
    """A descriptor of a file for reading."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_peft_folder(folder: Path, tensors: LoraTensors, settings: LoraSettings, dtype: str) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` into an empty folder.

    Raises: BadAdapter naming the tensor that has a value which is not finite: rounding must not hide it.
    """
    (folder / CONFIG_FILE).write_bytes(config_bytes(settings))
    fused = {module for (module, _), entry in tensors.entries.items() if len(entry.shape) == 3}
    wrappers = wrapper_modules(fused)
    entries = sorted(
        (tensor_name(wrappers.get(module, module), half), half, entry)
        for (module, half), entry in tensors.entries.items()
    )
    with (folder / WEIGHTS_FILE).open("xb") as file:
        file.write(_header([(name, _peft_shape(half, entry.shape)) for name, half, entry in entries], dtype))
        for name, half, entry in entries:
            values = read_tensor(tensors.descriptor, entry)
            if not np.isfinite(values).all():
                raise BadAdapter(f"tensor {name!r} of the checkpoint has values that are NaN or infinite", field=name)
            if len(entry.shape) == 3 and half == "lora_B":
                values = values.transpose(1, 2, 0)  # PEFT has the expert fastest in B, and slowest in A
            file.write(_encoded(values, dtype))
        file.flush()
        os.fsync(file.fileno())


def config_bytes(settings: LoraSettings) -> bytes:
    """`adapter_config.json`, with sorted keys."""
    alpha = settings.alpha
    body: dict[str, Any] = {
        "base_model_name_or_path": settings.base,
        "bias": "none",
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "peft_type": "LORA",
        "r": settings.rank,
        "target_modules": sorted(settings.targets),
        "task_type": "CAUSAL_LM",
    }
    if settings.parameters:
        body["target_parameters"] = sorted(settings.parameters)
    return (json.dumps(body, sort_keys=True, indent=2) + "\n").encode()


def _peft_shape(half: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != 3:
        return shape
    experts, first, second = shape
    if half == "lora_A":
        return lora_shape(half, (experts, 0, second), first)
    return lora_shape(half, (experts, first, 0), second)


def tensor_name(module: str, half: str) -> str:
    """How PEFT names the tensor."""
    return f"{TENSOR_PREFIX}{module}.{half}.weight"


def read_tensor(descriptor: int, entry: TensorEntry) -> NDArray[np.float32]:
    """One tensor as float32. Raises: BadAdapter for another dtype than an adapter may have, or a short file."""
    dtype = SAFETENSORS_DTYPES.get(entry.dtype)
    if dtype is None:
        raise BadAdapter(f"tensor {entry.name!r} has dtype {entry.dtype}", field=entry.name)
    raw = os.pread(descriptor, entry.end - entry.start, entry.start)
    if len(raw) != entry.end - entry.start:
        raise BadAdapter(f"the file ends inside tensor {entry.name!r}", field=entry.name)
    if dtype == "bfloat16":
        wide = np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16
        return wide.view(np.float32).reshape(entry.shape)
    stored = np.frombuffer(raw, dtype="<f4" if dtype == "float32" else "<f2")
    return stored.astype(np.float32, copy=False).reshape(entry.shape)


def _encoded(values: NDArray[np.float32], dtype: str) -> bytes:
    """Finite values rounded to nearest even, as torch rounds them."""
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    with np.errstate(over="ignore"):  # what overflows becomes infinite, which the checks then refuse by name
        return np.ascontiguousarray(values).astype("<f2" if dtype == "float16" else "<f4").tobytes()


def _header(tensors: Iterable[tuple[str, tuple[int, ...]]], dtype: str) -> bytes:
    body: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in tensors:
        size = DTYPE_BYTES[dtype] * int(np.prod(shape))
        body[name] = {"dtype": _DTYPE_CODES[dtype], "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    raw = json.dumps(body, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % _HEADER_ALIGNMENT)
    return struct.pack("<Q", len(raw)) + raw
