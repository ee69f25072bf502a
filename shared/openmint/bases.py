"""A base model's folder in Hugging Face layout: its digest, its modules, and what may be trained and served on it.

Read without torch. Weights, tokenizer, chat template and configuration make the digest, so two bases that answer
differently never share one.
"""

import contextlib
import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from openmint.adapters.expert_layout import Shape3, fuse_numbered
from openmint.adapters.safetensors_header import read_safetensors_header
from openmint.errors import BadAdapter, BadRequest
from openmint.identifiers import check_name

DIGEST_CACHE_FILE = ".openmint-digests.json"
"""Sizes, times and digests of the folder's files, so that gigabytes are hashed once."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
CONFIG_FILES = ("config.json", "generation_config.json")
"""The second one too: an engine takes its sampling defaults from it."""

MAX_HEADER_BYTES = 64 << 20
MAX_CONFIG_BYTES = 1 << 20

_LAYER = re.compile(r"(^|\.)layers\.[0-9]+\.")
_NOT_ADAPTED = frozenset({"embed_tokens", "lm_head", "gate", "router", "rotary_emb"})


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """What the other parts need to know of a base model."""

    name: str
    digest: str
    model_type: str
    architecture: str
    modules: dict[str, tuple[int, int]]
    """Linear modules of the decoder that take LoRA: path -> (out, in) features."""

    targets: tuple[str, ...]
    """Last parts of those paths, sorted: what an adapter's target_modules may name."""

    max_positions: int
    vocab_size: int
    hidden_size: int
    layers: int
    dtype: str
    has_chat_template: bool
    files: dict[str, str]
    """Files of the digest -> their sha256, hexadecimal."""

    experts: dict[str, Shape3] = field(default_factory=dict[str, Shape3])
    """Expert weights that the built model holds in one parameter: path -> (experts, out, in). The linears of experts
    that the files hold one by one are in `modules` too: adapters from elsewhere may name either."""

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "BaseFacts":
        """Read what dataclasses.asdict gave, also after its way through JSON (the catalogue's `config` of a base)."""
        modules = {path: (int(shape[0]), int(shape[1])) for path, shape in body["modules"].items()}
        rest = {name: body[name] for name in body if name not in ("modules", "targets", "experts")}
        return cls(modules=modules, targets=tuple(body["targets"]), experts=_experts_of(body, modules), **rest)

    @classmethod
    def registered(
        cls, name: str, digest: str, modules: Mapping[str, tuple[int, int]], config: Mapping[str, Any]
    ) -> "BaseFacts":
        """The facts of a base as the catalogue keeps it; what its `config` does not say stays empty."""
        body: dict[str, Any] = {
            "model_type": "",
            "architecture": "",
            "max_positions": 0,
            "vocab_size": 0,
            "hidden_size": 0,
            "layers": 0,
            "dtype": "",
            "has_chat_template": False,
            "files": {},
        }
        known = {field: config[field] for field in body if field in config}
        return cls(
            name=name,
            digest=digest,
            modules=dict(modules),
            targets=targets_of(modules),
            experts=_experts_of(config, modules),
            **(body | known),
        )


def read_base_folder(path: Path, name: str | None = None) -> BaseFacts:
    """Read a base model's folder; its name is the folder's unless another is given.

    Raises: BadRequest naming the file when the folder is not a base model that openmint can keep; BadName.
    """
    folder = path.resolve()
    base = check_name(name or folder.name, "base model")
    config = _read_config(folder / "config.json")
    weights = sorted(file.name for file in folder.glob("*.safetensors"))
    if not weights:
        raise BadRequest(f"{folder} holds no *.safetensors file", field="base")
    hidden_size = _positive(config, "hidden_size")
    modules, experts = _read_modules(folder, weights, hidden_size)
    if not modules:
        raise BadRequest(f"{folder} has no decoder layers with linear modules that take LoRA", field="base")
    others = [file for file in (*CONFIG_FILES, *TOKENIZER_FILES) if (folder / file).is_file()]
    if not any(file.startswith(("tokenizer.", "vocab.")) for file in others):
        raise BadRequest(f"{folder} holds no tokenizer", field="base")
    index = sorted(file.name for file in folder.glob("*.safetensors.index.json"))
    files = _digests(folder, sorted([*weights, *others, *index]))
    whole = hashlib.sha256("".join(f"{file} {digest}\n" for file, digest in sorted(files.items())).encode())
    architectures = config.get("architectures") or [""]
    return BaseFacts(
        name=base,
        digest=f"sha256:{whole.hexdigest()}",
        model_type=str(config.get("model_type", "")),
        architecture=str(architectures[0]),
        modules=modules,
        targets=targets_of(modules),
        max_positions=_positive(config, "max_position_embeddings"),
        vocab_size=_positive(config, "vocab_size"),
        hidden_size=hidden_size,
        layers=_positive(config, "num_hidden_layers"),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
        has_chat_template=_has_chat_template(folder),
        files=files,
        experts=experts | fuse_numbered(modules),
    )


def _experts_of(body: Mapping[str, Any], modules: Mapping[str, tuple[int, int]]) -> dict[str, Shape3]:
    if "experts" not in body:
        return fuse_numbered(modules)
    return {path: (int(shape[0]), int(shape[1]), int(shape[2])) for path, shape in body["experts"].items()}


def targets_of(modules: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """The last parts of module paths, each once, sorted."""
    return tuple(sorted({module.rpartition(".")[2] for module in modules}))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()[: MAX_CONFIG_BYTES + 1]
        body = json.loads(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise BadRequest(f"{path} can't be read: {type(error).__name__}", field="base") from error
    if not isinstance(body, dict):
        raise BadRequest(f"{path} is not an object", field="base")
    config = cast(dict[str, Any], body)
    if "auto_map" in config:
        raise BadRequest(f"{path} asks for code of its own (auto_map), which is never run", field="base")
    return config


def _read_modules(
    folder: Path, weights: list[str], hidden_size: int
) -> tuple[dict[str, tuple[int, int]], dict[str, Shape3]]:
    modules: dict[str, tuple[int, int]] = {}
    experts: dict[str, Shape3] = {}
    for file in weights:
        try:
            header = read_safetensors_header(folder / file, max_header_bytes=MAX_HEADER_BYTES, max_tensors=1_000_000)
        except (BadAdapter, OSError) as error:
            raise BadRequest(f"{folder / file} can't be read: {error}", field="base") from error
        for tensor in header.tensors:
            module, _, kind = tensor.name.rpartition(".")
            last = module.rpartition(".")[2]
            if kind == "weight" and len(tensor.shape) == 2 and _LAYER.search(module) and last not in _NOT_ADAPTED:
                modules[module] = (tensor.shape[0], tensor.shape[1])
            elif len(tensor.shape) == 3 and module.endswith(".experts") and _LAYER.search(module):
                shape = _fused_shape(kind, tensor.shape, hidden_size)
                if shape is not None:
                    experts[tensor.name] = shape
    return dict(sorted(modules.items())), dict(sorted(experts.items()))


def _fused_shape(kind: str, stored: tuple[int, ...], hidden_size: int) -> Shape3 | None:
    """Which side of a fused weight is which: models store either [E, out, in] or [E, in, out]."""
    count, first, second = stored
    if kind in ("gate_up_proj", "up_proj"):
        return (count, first, second) if second == hidden_size else (count, second, first)
    if kind == "down_proj":
        return (count, first, second) if first == hidden_size else (count, second, first)
    return None


def _positive(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if type(value) is not int or value <= 0:
        raise BadRequest(f"config.json: {name} is not a positive whole number", field="base")
    return value


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and '"chat_template"' in path.read_text(encoding="utf-8", errors="replace")


def _digests(folder: Path, names: list[str]) -> dict[str, str]:
    cache_path = folder / DIGEST_CACHE_FILE
    cached = _read_cache(cache_path)
    digests: dict[str, str] = {}
    fresh: dict[str, dict[str, Any]] = {}
    for name in names:
        status = (folder / name).stat()
        known = cached.get(name, {})
        if (known.get("bytes"), known.get("mtime_ns")) == (status.st_size, status.st_mtime_ns):
            digest = str(known.get("sha256"))
        else:
            with (folder / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        digests[name] = digest
        fresh[name] = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": digest}
    if fresh != cached:
        _write_cache(cache_path, fresh)
    return digests


def _read_cache(path: Path) -> dict[str, dict[str, Any]]:
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return cast(dict[str, dict[str, Any]], body) if isinstance(body, dict) else {}


def _write_cache(path: Path, entries: dict[str, dict[str, Any]]) -> None:
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_text(json.dumps(entries, sort_keys=True))
        temporary.replace(path)
    except OSError:
        # A read-only folder: the files are hashed at each start then.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
