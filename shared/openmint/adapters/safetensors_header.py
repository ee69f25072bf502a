"""The header of a safetensors file, read strictly and without the library: what it accepts is more than we do.

The file: 8 bytes little-endian header length, a JSON object of name -> {dtype, shape, data_offsets}, then the bytes of
all tensors. Here a header must describe every byte of the file exactly once.
"""

import math
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from openmint.adapters.escaping import shown
from openmint.adapters.strict_json import NotStrict, read_strict_json
from openmint.errors import BadAdapter

MAX_NAME_BYTES = 200
MAX_DIMENSIONS = 8
MAX_SIZE = 1 << 48

_VISIBLE = re.compile(r"[!-~]+")

ELEMENT_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor; `start` and `end` count from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """Tensors in the order of their bytes, and the file's own metadata."""

    tensors: tuple[TensorEntry, ...]
    metadata: dict[str, str]


def read_safetensors_header(
    path: Path, *, max_header_bytes: int = 1 << 20, max_tensors: int = 50_000
) -> SafetensorsHeader:
    """Read the header of a file by its path, following no symbolic link. Raises: BadAdapter, OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return read_header_of(descriptor, path.name, max_header_bytes=max_header_bytes, max_tensors=max_tensors)
    finally:
        os.close(descriptor)


def read_header_of(
    descriptor: int, file_name: str, *, max_header_bytes: int = 1 << 20, max_tensors: int = 50_000
) -> SafetensorsHeader:
    """Read the header of an open file. Raises: BadAdapter naming the file and the tensor."""
    size = os.fstat(descriptor).st_size

    def refuse(reason: str) -> BadAdapter:
        return BadAdapter(f"{file_name}: {reason}", field=file_name)

    prefix = os.pread(descriptor, 8, 0)
    if len(prefix) < 8:
        raise refuse(f"{size} bytes are too few for a safetensors file")
    length: int = struct.unpack("<Q", prefix)[0]
    if length > max_header_bytes:
        raise refuse(f"the header is {length} bytes long; the limit is {max_header_bytes}")
    if length < 2 or 8 + length > size:
        raise refuse(f"the header claims {length} bytes in a file of {size}")
    try:
        body = read_strict_json(os.pread(descriptor, length, 8))
    except NotStrict as error:
        raise refuse(f"the header is {error}") from error
    if not isinstance(body, dict):
        raise refuse("the header is not an object")
    return _checked(cast(dict[str, Any], body), 8 + length, size, max_tensors, refuse)


def _checked(
    body: dict[str, Any], data_start: int, size: int, max_tensors: int, refuse: Callable[[str], BadAdapter]
) -> SafetensorsHeader:
    metadata = body.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise refuse("__metadata__ is not an object of texts")
    if len(body) > max_tensors:
        raise refuse(f"{len(body)} tensors; the limit is {max_tensors}")
    if not body:
        raise refuse("there are no tensors")
    entries = [_entry(name, fields, data_start, refuse) for name, fields in body.items()]
    entries.sort(key=lambda entry: (entry.start, entry.end))
    position = data_start
    for entry in entries:
        if entry.start != position:
            what = "overlaps the tensor before it" if entry.start < position else "leaves a hole before it"
            raise refuse(f"tensor {shown(entry.name)} {what}")
        position = entry.end
    if position != size:
        raise refuse(f"the tensors end at byte {position} of {size}")
    return SafetensorsHeader(tuple(entries), cast(dict[str, str], metadata))


def _entry(name: str, fields: Any, data_start: int, refuse: Callable[[str], BadAdapter]) -> TensorEntry:
    if not name or len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        raise refuse(f"tensor name {shown(name)} is empty or longer than {MAX_NAME_BYTES} bytes")
    if not _VISIBLE.fullmatch(name):
        raise refuse(f"tensor name {shown(name)} has characters other than visible ASCII")
    if not isinstance(fields, dict) or set(cast(dict[str, Any], fields)) != {"dtype", "shape", "data_offsets"}:
        raise refuse(f"tensor {shown(name)} has not exactly dtype, shape and data_offsets")
    entry = cast(dict[str, Any], fields)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ELEMENT_BYTES:
        raise refuse(f"tensor {shown(name)} has the unknown dtype {shown(str(dtype))}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise refuse(f"tensor {shown(name)}: shape is not a list of up to {MAX_DIMENSIONS} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[1] < offsets[0]:
        raise refuse(f"tensor {shown(name)}: data_offsets are not two rising positions")
    needed = math.prod(shape) * ELEMENT_BYTES[dtype]
    if needed != offsets[1] - offsets[0]:
        raise refuse(f"tensor {shown(name)} needs {needed} bytes and has {offsets[1] - offsets[0]}")
    return TensorEntry(name, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(size) is int and 0 <= size <= MAX_SIZE for size in cast(list[Any], value)
    )
