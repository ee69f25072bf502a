"""The engine layout file: one adapter in the shape that one engine build copies into its slots.

`pack` writes it from a checked PEFT file, with numpy alone; the plug-in maps it (`read_header`, then tensors as views).
The file is derived: it can be made again at any time from the revision, and no digest of ours depends on it.

Layout: 8-byte little-endian header length, JSON header, zeros up to a multiple of 4096, one blob. Each module of the
engine has one A [rank, in] and one B [out, rank] per slice, in the engine's dtype, with alpha / rank folded into B.
"""

import hashlib
import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

FORMAT = 1
FILE_NAME = "adapter.openmint"
ALIGNMENT = 4096
MAX_HEADER_BYTES = 16 << 20  # a 128-expert model needs about 3 MB

WIDTH_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_SAFETENSORS_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


class BadLayout(ValueError):
    """A file or a module table that can't be a layout of this engine."""


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


@dataclass(frozen=True, slots=True)
class ModuleTable:
    """Every module of an engine that takes LoRA."""

    dtype: str
    parallel_width: int
    max_rank: int
    modules: tuple[EngineModule, ...]

    def fingerprint(self) -> str:
        """16 hex characters that change when a file made for another engine would not fit this one."""
        shape = {
            "format": FORMAT,
            "dtype": self.dtype,
            "parallel_width": self.parallel_width,
            "modules": [asdict(module) for module in self.modules],
        }
        return hashlib.sha256(json.dumps(shape, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]

    def sources(self) -> dict[str, tuple[int, int]]:
        """The base's module paths that this engine serves -> (out, in)."""
        return {s.source: (s.out_size, s.in_size) for module in self.modules for s in module.slices}

    def as_json(self) -> dict[str, Any]:
        """Plain values, for the way from the worker to the host."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> "ModuleTable":
        """Read what `as_json` gave."""
        modules = tuple(
            EngineModule(m["name"], m["packed"], tuple(Slice(**s) for s in m["slices"])) for m in body["modules"]
        )
        return cls(body["dtype"], body["parallel_width"], body["max_rank"], modules)


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where a tensor lies: elements from the start of the blob, rows, columns."""

    offset: int
    rows: int
    columns: int


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
    blob_sha256: str
    modules: tuple[PackedModule, ...]


def pack(peft_file: Path, table: ModuleTable, digest: str, rank: int, alpha: float, out: Path) -> LayoutHeader:
    """Write the layout file of a checked adapter.

    Raises: BadLayout when the adapter has a module that the engine does not serve, or a shape that does not fit it.
    """
    tensors = _SafetensorsView(peft_file)
    scale = alpha / rank
    width = WIDTH_BYTES[table.dtype]
    known = table.sources()
    strangers = sorted(tensors.modules() - set(known))
    if strangers:
        raise BadLayout(f"this engine serves no LoRA on {strangers[0]} ({len(strangers)} such modules)")
    blob: list[bytes] = []
    position = 0

    def put(array: NDArray[Any], rows: int, columns: int) -> TensorPlace:
        nonlocal position
        if array.shape != (rows, columns):
            raise BadLayout(f"a tensor of shape {array.shape} where the engine needs {(rows, columns)}")
        place = TensorPlace(position, rows, columns)
        raw = array.tobytes()
        blob.append(raw)
        position += len(raw) // width
        return place

    modules: list[PackedModule] = []
    for module in table.modules:
        if not any(s.source in tensors.modules() for s in module.slices):
            continue
        places_a: list[TensorPlace | None] = []
        places_b: list[TensorPlace | None] = []
        for s in module.slices:
            if s.source not in tensors.modules():
                places_a.append(None)
                places_b.append(None)
                continue
            places_a.append(put(_encode(tensors.read(s.source, "A"), table.dtype), rank, s.in_size))
            b = _encode(tensors.read(s.source, "B"), table.dtype)
            if scale != 1.0:
                b = _encode(_decode(b, table.dtype) * np.float32(scale), table.dtype)
            places_b.append(put(b, s.out_size, rank))
        modules.append(PackedModule(module.name, module.packed, tuple(places_a), tuple(places_b)))
    return _write(out, blob, digest, table, rank, tuple(modules))


def _write(
    out: Path, blob: list[bytes], digest: str, table: ModuleTable, rank: int, modules: tuple[PackedModule, ...]
) -> LayoutHeader:
    content = b"".join(blob)
    fields: dict[str, Any] = {
        "format": FORMAT,
        "digest": digest,
        "layout": table.fingerprint(),
        "dtype": table.dtype,
        "rank": rank,
        "blob_bytes": len(content),
        "blob_sha256": hashlib.sha256(content).hexdigest(),
        "modules": [asdict(module) for module in modules],
    }
    raw = json.dumps(fields, separators=(",", ":")).encode()
    offset = -(-(8 + len(raw)) // ALIGNMENT) * ALIGNMENT
    with out.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)))
        file.write(raw)
        file.write(b"\0" * (offset - 8 - len(raw)))
        file.write(content)
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
            body["blob_sha256"],
            modules,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BadLayout(f"{path.name}: header can't be read: {error}") from error
    if body.get("format") != FORMAT or header.dtype not in WIDTH_BYTES:
        raise BadLayout(f"{path.name}: format {body.get('format')!r} with dtype {header.dtype!r} is not ours")
    if size != offset + header.blob_bytes:
        raise BadLayout(f"{path.name}: {size} bytes where the header says {offset + header.blob_bytes}")
    return header


def check_blob(path: Path, header: LayoutHeader) -> None:
    """Compare the blob with its digest, which also brings its pages into memory. Raises: BadLayout."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(header.blob_offset)
        while chunk := file.read(1 << 20):
            found.update(chunk)
    if found.hexdigest() != header.blob_sha256:
        raise BadLayout(f"{path.name}: the blob is not the one that was written")


def _places(entries: list[dict[str, int] | None]) -> tuple[TensorPlace | None, ...]:
    return tuple(TensorPlace(**entry) if entry else None for entry in entries)


class _SafetensorsView:
    """Raw tensors of a PEFT file that has passed the checks."""

    _PREFIX = "base_model.model."

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            header = cast(dict[str, Any], json.loads(file.read(length)))
        self._start = 8 + length
        self._entries: dict[tuple[str, str], dict[str, Any]] = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            module, _, kind = name.removeprefix(self._PREFIX).removesuffix(".weight").rpartition(".lora_")
            self._entries[module, kind] = entry

    def modules(self) -> set[str]:
        return {module for module, _ in self._entries}

    def read(self, module: str, kind: str) -> NDArray[np.float32]:
        try:
            entry = self._entries[module, kind]
        except KeyError:
            raise BadLayout(f"{module} has no lora_{kind}") from None
        start, end = entry["data_offsets"]
        dtype = _SAFETENSORS_DTYPES[entry["dtype"]]
        raw = np.fromfile(self._path, dtype=np.uint8, count=end - start, offset=self._start + start)
        storage = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.float16}[dtype]
        return _decode(raw.view(storage).reshape(entry["shape"]), dtype)


def _decode(array: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Numbers of a dtype as float32; bfloat16 comes as its 16 bits, which numpy has no type for."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def _encode(array: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Float32 rounded to nearest even in a dtype, as torch does it. Finite values only."""
    if dtype == "bfloat16":
        bits = array.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return array.astype(np.float16 if dtype == "float16" else np.float32)
