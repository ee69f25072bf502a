"""The engine layout file: one adapter in the shape that one engine build copies into its slots.

`pack` writes it from a checked PEFT file, with numpy alone; the plug-in maps it (`read_header`, then tensors as views).
The file is derived: it can be made again at any time from the revision, and no digest of ours depends on it.

Layout: 8-byte little-endian header length, JSON header, zeros up to a multiple of 4096, one blob. Each module of the
engine has one A [rank, in] and one B [out, rank] per slice, in the engine's dtype, with alpha / rank folded into B.
Fused experts have one A [experts, rank, in] and one B [experts, out, rank] per projection instead: thousands of small
tensors of a PEFT file become a few, which the engine copies as they lie.
"""

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmint_engine_host.peft_tensors import STORAGE, BadLayout, PeftTensors, convert, scaled

FORMAT = 2
FILE_NAME = "adapter.openmint"
ALIGNMENT = 4096
MAX_HEADER_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Slice:
    """One part of an engine module: the base's own module of that part, and the sizes of its LoRA pair."""

    source: str
    in_size: int
    out_size: int


@dataclass(frozen=True, slots=True)
class EngineModule:
    """A module as the engine fused it, such as qkv_proj of three slices."""

    name: str
    packed: bool
    slices: tuple[Slice, ...]
    experts: int = 0
    """Above 0: fused experts. Their slices are expert by expert, in each the engine's projections in its order."""

    def projections(self) -> tuple[tuple[Slice, ...], ...]:
        """The slices that share one A and one B of the file: those of a projection over all experts, or one alone."""
        count = len(self.slices) // self.experts if self.experts else len(self.slices)
        return tuple(self.slices[first::count] for first in range(count))

    def as_json(self) -> dict[str, Any]:
        """Plain values. A module without experts does not speak of them, so that older fingerprints still hold."""
        slices = [{"source": s.source, "in_size": s.in_size, "out_size": s.out_size} for s in self.slices]
        body = {"name": self.name, "packed": self.packed, "slices": slices}
        return body | ({"experts": self.experts} if self.experts else {})


@dataclass(frozen=True, slots=True)
class ModuleTable:
    """Every module of an engine that takes LoRA."""

    dtype: str
    parallel_width: int
    max_rank: int
    modules: tuple[EngineModule, ...]
    _fingerprint: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        shape = {
            "format": FORMAT,
            "dtype": self.dtype,
            "parallel_width": self.parallel_width,
            "modules": [module.as_json() for module in self.modules],
        }
        raw = json.dumps(shape, sort_keys=True, separators=(",", ":")).encode()
        object.__setattr__(self, "_fingerprint", hashlib.sha256(raw).hexdigest()[:16])

    def fingerprint(self) -> str:
        """16 hex characters that change when a file made for another engine would not fit this one."""
        return self._fingerprint

    def sources(self) -> dict[str, tuple[int, int]]:
        """The base's module paths that this engine serves -> (out, in)."""
        return {s.source: (s.out_size, s.in_size) for module in self.modules for s in module.slices}

    def as_json(self) -> dict[str, Any]:
        """Plain values, for the way from the worker to the host."""
        return {
            "dtype": self.dtype,
            "parallel_width": self.parallel_width,
            "max_rank": self.max_rank,
            "modules": [module.as_json() for module in self.modules],
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> "ModuleTable":
        """Read what `as_json` gave."""
        modules = tuple(
            EngineModule(m["name"], m["packed"], tuple(Slice(**s) for s in m["slices"]), m.get("experts", 0))
            for m in body["modules"]
        )
        return cls(body["dtype"], body["parallel_width"], body["max_rank"], modules)


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where a tensor lies: elements from the start of the blob, rows, columns; of how many experts, one after another.

    With `experts` 0 the tensor has two dimensions, else three.
    """

    offset: int
    rows: int
    columns: int
    experts: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's dimensions."""
        return (self.experts, self.rows, self.columns) if self.experts else (self.rows, self.columns)

    def as_json(self) -> dict[str, int]:
        """Plain values; without experts as files had it before there were any."""
        body = {"offset": self.offset, "rows": self.rows, "columns": self.columns}
        return body | ({"experts": self.experts} if self.experts else {})


@dataclass(frozen=True, slots=True)
class PackedModule:
    """The LoRA pairs of one engine module; None where the adapter leaves a slice alone."""

    name: str
    packed: bool
    a: tuple[TensorPlace | None, ...]
    b: tuple[TensorPlace | None, ...]


@dataclass(frozen=True, slots=True)
class LayoutHeader:
    """What the file says about itself."""

    digest: str
    layout: str
    dtype: str
    rank: int
    blob_offset: int
    blob_bytes: int
    blob_crc32: int
    """Against what a crash leaves half written; who wrote it is not in question, nobody else may write there."""

    modules: tuple[PackedModule, ...]


def pack(peft_file: Path, table: ModuleTable, digest: str, rank: int, alpha: float, out: Path) -> LayoutHeader:
    """Write the layout file of a checked adapter.

    Raises: BadLayout when the adapter has a module that the engine does not serve, a shape that does not fit it, or a
        value that would poison what it computes.
    """
    tensors = PeftTensors(peft_file)
    known = table.sources()
    tensors.part_experts(known, rank)
    strangers = sorted(tensors.modules() - set(known))
    if strangers:
        raise BadLayout(f"this engine serves no LoRA on {strangers[0]} ({len(strangers)} such modules)")
    blob = _Blob(tensors, table.dtype, rank, alpha / rank)
    modules: list[PackedModule] = []
    for module in table.modules:
        given = [s.source in tensors.modules() for s in module.slices]
        if not any(given):
            continue
        pairs = [blob.put(slices, module.experts) for slices in module.projections()]
        modules.append(PackedModule(module.name, module.packed, tuple(a for a, _ in pairs), tuple(b for _, b in pairs)))
    return _write(out, blob.parts, digest, table, rank, tuple(modules))


class _Blob:
    """The tensors of a layout file, one after another."""

    def __init__(self, tensors: PeftTensors, dtype: str, rank: int, scale: float) -> None:
        self.parts: list[bytes | memoryview] = []
        self._tensors = tensors
        self._dtype = dtype
        self._rank = rank
        self._scale = np.float32(scale)
        self._position = 0

    def put(self, slices: tuple[Slice, ...], experts: int) -> tuple[TensorPlace | None, TensorPlace | None]:
        """Append A and B of one slice, or of a projection over all experts.

        None for a slice that the adapter leaves alone; experts get zeros then, because the engine takes them whole.
        Raises: BadLayout when an adapter has a projection on some experts only, or a shape that does not fit.
        """
        first = slices[0]
        given = [s.source for s in slices if s.source in self._tensors.modules()]
        if not given and not experts:
            return None, None
        if given and len(given) < len(slices):
            lacking = next(s.source for s in slices if s.source not in given)
            raise BadLayout(f"{lacking} has no LoRA where {given[0]} has: it must be on all experts or none")
        a_shape, b_shape = (self._rank, first.in_size), (first.out_size, self._rank)
        if not given:
            a, b = (np.zeros((experts, *shape), STORAGE[self._dtype]) for shape in (a_shape, b_shape))
            return self._append(a, a_shape, experts), self._append(b, b_shape, experts)
        a = convert(*self._tensors.read(given, "A", a_shape), self._dtype)
        b = scaled(*self._tensors.read(given, "B", b_shape), self._scale, self._dtype)
        return self._append(a, a_shape, experts), self._append(b, b_shape, experts)

    def _append(self, array: NDArray[Any], shape: tuple[int, int], experts: int) -> TensorPlace:
        place = TensorPlace(self._position, *shape, experts)
        self.parts.append(np.ascontiguousarray(array).data.cast("B"))
        self._position += math.prod(place.shape)
        return place


def _write(
    out: Path,
    blob: Sequence[bytes | memoryview],
    digest: str,
    table: ModuleTable,
    rank: int,
    modules: tuple[PackedModule, ...],
) -> LayoutHeader:
    found = 0
    for tensor in blob:
        found = zlib.crc32(tensor, found)
    fields: dict[str, Any] = {
        "format": FORMAT,
        "digest": digest,
        "layout": table.fingerprint(),
        "dtype": table.dtype,
        "rank": rank,
        "blob_bytes": sum(len(tensor) for tensor in blob),
        "blob_crc32": found,
        "modules": [
            {
                "name": module.name,
                "packed": module.packed,
                "a": [place and place.as_json() for place in module.a],
                "b": [place and place.as_json() for place in module.b],
            }
            for module in modules
        ],
    }
    raw = json.dumps(fields, separators=(",", ":")).encode()
    offset = -(-(8 + len(raw)) // ALIGNMENT) * ALIGNMENT
    with out.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)))
        file.write(raw)
        file.write(b"\0" * (offset - 8 - len(raw)))
        for tensor in blob:
            file.write(tensor)
    return read_header(out)


def read_header(path: Path) -> LayoutHeader:
    """Read and check the header against the file's size. Raises: BadLayout."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < length <= min(MAX_HEADER_BYTES, size):
            raise BadLayout(f"{path.name}: header length {length} is impossible")
        raw = file.read(length)
    try:
        body = json.loads(raw)
        modules = tuple(PackedModule(m["name"], m["packed"], _places(m["a"]), _places(m["b"])) for m in body["modules"])
        offset = -(-(8 + length) // ALIGNMENT) * ALIGNMENT
        header = LayoutHeader(
            body["digest"],
            body["layout"],
            body["dtype"],
            body["rank"],
            offset,
            body["blob_bytes"],
            body["blob_crc32"],
            modules,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BadLayout(f"{path.name}: header can't be read: {error}") from error
    if body.get("format") != FORMAT or header.dtype not in STORAGE:
        raise BadLayout(f"{path.name}: format {body.get('format')!r} with dtype {header.dtype!r} is not ours")
    if size != offset + header.blob_bytes:
        raise BadLayout(f"{path.name}: {size} bytes where the header says {offset + header.blob_bytes}")
    return header


def check_fits(header: LayoutHeader, table: ModuleTable) -> None:
    """Compare every tensor with the slot that it will be copied into: a step that met another one would end the engine.

    Raises: BadLayout.
    """
    if header.rank > table.max_rank:
        raise BadLayout(f"rank {header.rank} is above this engine's {table.max_rank}")
    known = {module.name: module for module in table.modules}
    for packed in header.modules:
        module = known.get(packed.name)
        pairs = () if module is None else module.projections()
        if module is None or not len(pairs) == len(packed.a) == len(packed.b):
            raise BadLayout(f"{packed.name} is no module of this engine, or has other slices")
        for a, b, (first, *_) in zip(packed.a, packed.b, pairs, strict=True):
            fits_a = a is None or (a.experts, a.rows, a.columns) == (module.experts, header.rank, first.in_size)
            fits_b = b is None or (b.experts, b.rows, b.columns) == (module.experts, first.out_size, header.rank)
            if not (fits_a and fits_b) or (a is None) != (b is None):
                raise BadLayout(f"{packed.name} has a tensor that does not fit this engine")


def check_blob(path: Path, header: LayoutHeader) -> None:
    """Compare the blob with its checksum, which also brings its pages into memory. Raises: BadLayout."""
    found = 0
    with path.open("rb") as file:
        file.seek(header.blob_offset)
        while chunk := file.read(1 << 20):
            found = zlib.crc32(chunk, found)
    if found != header.blob_crc32:
        raise BadLayout(f"{path.name}: the blob is not the one that was written")


def _places(entries: list[dict[str, int] | None]) -> tuple[TensorPlace | None, ...]:
    return tuple(TensorPlace(**entry) if entry else None for entry in entries)
