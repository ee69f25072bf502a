"""What the checks of an adapter ask for, and what they found. Plain values: no numpy here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "manifest.sig"

ADAPTER_FILES = frozenset({WEIGHTS_FILE, CONFIG_FILE, MANIFEST_FILE, SIGNATURE_FILE})
"""The whole of an adapter folder; anything else in it is refused."""

DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
SAFETENSORS_DTYPES: Mapping[str, str] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}

TENSOR_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """Bounds on an adapter from outside."""

    max_rank: int = 256
    max_alpha: float = 4096.0
    max_abs: float = 1e3
    """Of one weight. Trained LoRA weights stay below 10; above this a product overflows in float16."""

    max_norm: float = 1e6
    """Of alpha / r x |A| x |B| (Frobenius) of one module. Random normal weights of rank 64 at width 4096 have 3e5."""

    max_config_bytes: int = 64 << 10
    max_header_bytes: int = 8 << 20
    """Of the weights. An adapter of 16 layers of 128 experts has 12,416 tensors and a header of 2 MB."""

    max_tensors: int = 50_000
    max_manifest_bytes: int = 16 << 20
    accepted_base_names: tuple[str, ...] = ()
    """Other names that a foreign adapter's config may give our base, such as its name on a hub."""


@dataclass(frozen=True, slots=True)
class TensorFact:
    """One tensor as the manifest names it."""

    shape: tuple[int, int]
    sha256: str


@dataclass(frozen=True, slots=True)
class FileFact:
    """One file as the manifest names it."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """A folder that passed every check."""

    base: str
    rank: int
    alpha: float
    targets: tuple[str, ...]
    dtype: str
    tensors: dict[str, TensorFact]
    files: dict[str, FileFact]
    max_abs: float
    max_norm: float
    is_zero: bool
    """Every B (or every A) is zero: the adapter changes nothing."""

    digest: str | None
    """That of its manifest, when the folder has one; the manifest then agrees with everything here."""

    parameters: tuple[str, ...] = ()
    """Fused expert weights that it adapts, as `target_parameters` names them; `targets` are its linears."""

    @property
    def adapter_bytes(self) -> int:
        """Of the files that are loaded."""
        return sum(file.bytes for file in self.files.values())

    def as_json(self) -> dict[str, Any]:
        """Plain values, for the way out of a child process."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "AdapterFacts":
        """Read what `as_json` gave."""
        tensors = {
            name: TensorFact((int(fact["shape"][0]), int(fact["shape"][1])), str(fact["sha256"]))
            for name, fact in body["tensors"].items()
        }
        files = {name: FileFact(**fact) for name, fact in body["files"].items()}
        rest = {name: body[name] for name in body if name not in ("tensors", "files", "targets", "parameters")}
        targets, parameters = tuple(body["targets"]), tuple(body["parameters"])
        return cls(tensors=tensors, files=files, targets=targets, parameters=parameters, **rest)
