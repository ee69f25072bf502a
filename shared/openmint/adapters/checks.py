"""Everything an adapter must be before an engine or PEFT may read it. An engine itself checks almost none of this.

`check_adapter_folder` runs in this process; for folders from outside use `inspection.inspect_in_child`. Each refusal is
one BadAdapter that names the file, tensor or field.
"""

import hashlib
from pathlib import Path

from openmint.adapters.adapter_config import AdapterConfig, parse_adapter_config
from openmint.adapters.escaping import shown
from openmint.adapters.facts import (
    CONFIG_FILE,
    DTYPE_BYTES,
    MANIFEST_FILE,
    SAFETENSORS_DTYPES,
    TENSOR_PREFIX,
    WEIGHTS_FILE,
    AdapterFacts,
    AdapterLimits,
    FileFact,
    TensorFact,
)
from openmint.adapters.folder import AdapterFolder, sha256_of
from openmint.adapters.manifest import Manifest
from openmint.adapters.safetensors_header import TensorEntry, read_header_of
from openmint.adapters.tensor_values import TensorValues, read_values
from openmint.bases import BaseFacts
from openmint.errors import BadAdapter

_DEFAULT_LIMITS = AdapterLimits()


def check_adapter_folder(
    path: Path, base: BaseFacts, limits: AdapterLimits = _DEFAULT_LIMITS, *, needs_manifest: bool = False
) -> AdapterFacts:
    """Check a folder against its base: files, configuration, names, shapes, values and, if it has one, the manifest.

    Raises: BadAdapter naming the culprit.
    """
    with AdapterFolder(path) as folder:
        raw_config = folder.read(CONFIG_FILE, limits.max_config_bytes)
        config = parse_adapter_config(raw_config, base, limits)
        modules = {
            module: shape for module, shape in base.modules.items() if module.rpartition(".")[2] in config.targets
        }
        max_bytes = 8 + limits.max_header_bytes + max(DTYPE_BYTES.values()) * _elements(modules, limits.max_rank)
        with folder.open(WEIGHTS_FILE, max_bytes) as descriptor:
            header = read_header_of(
                descriptor, WEIGHTS_FILE, max_header_bytes=limits.max_header_bytes, max_tensors=limits.max_tensors
            )
            dtype = _check_tensors(header.tensors, modules, config, base)
            # Shapes before values: a file with a wrong shape is not worth reading.
            values = {entry.name: read_values(descriptor, entry) for entry in header.tensors}
            max_norm = _check_values(values, modules, config, limits)
            weights = FileFact(header.tensors[-1].end, sha256_of(descriptor))
        facts = AdapterFacts(
            base=base.name,
            rank=config.rank,
            alpha=config.alpha,
            targets=config.targets,
            dtype=dtype,
            tensors={
                entry.name: TensorFact((entry.shape[0], entry.shape[1]), values[entry.name].sha256)
                for entry in sorted(header.tensors, key=lambda entry: entry.name)
            },
            files={
                CONFIG_FILE: FileFact(len(raw_config), hashlib.sha256(raw_config).hexdigest()),
                WEIGHTS_FILE: weights,
            },
            max_abs=max(value.max_abs for value in values.values()),
            max_norm=max_norm,
            is_zero=max_norm == 0.0,
            digest=None,
        )
        if MANIFEST_FILE not in folder.names:
            if needs_manifest:
                raise BadAdapter(f"{MANIFEST_FILE} is missing", field=MANIFEST_FILE)
            return facts
        manifest = Manifest.parse(folder.read(MANIFEST_FILE, limits.max_manifest_bytes))
        return _agreed(facts, manifest, base)


def _elements(modules: dict[str, tuple[int, int]], rank: int) -> int:
    return sum((out_size + in_size) * rank for out_size, in_size in modules.values())


def _check_tensors(
    tensors: tuple[TensorEntry, ...], modules: dict[str, tuple[int, int]], config: AdapterConfig, base: BaseFacts
) -> str:
    found: dict[str, TensorEntry] = {}
    matched = sum(1 for entry in tensors if _module_of(entry.name)[0] in base.modules)
    for entry in tensors:
        module, half = _module_of(entry.name)
        if not half:
            raise _refusal(entry.name, "is no LoRA weight: names end with .lora_A.weight or .lora_B.weight")
        if module not in base.modules:
            raise _refusal(
                entry.name,
                f"names no module of {base.name!r} that takes LoRA ({matched} of {len(tensors)} tensors do)",
            )
        if module not in modules:
            raise _refusal(
                entry.name, f"is of a module that target_modules does not name ({', '.join(config.targets)})"
            )
        found[f"{module}.{half}"] = entry
    dtypes = {entry.dtype: entry.name for entry in tensors}
    for dtype, name in dtypes.items():
        if dtype not in SAFETENSORS_DTYPES:
            raise _refusal(name, f"has dtype {dtype}; only {', '.join(SAFETENSORS_DTYPES)} are allowed")
    if len(dtypes) > 1:
        (one, first), (other, second) = list(dtypes.items())[:2]
        raise _refusal(second, f"has dtype {other} where {shown(first)} has {one}: there must be one")
    for module, (out_size, in_size) in modules.items():
        for half, shape in (("lora_A", (config.rank, in_size)), ("lora_B", (out_size, config.rank))):
            entry = found.get(f"{module}.{half}")
            if entry is None:
                raise _refusal(f"{TENSOR_PREFIX}{module}.{half}.weight", "is missing")
            if entry.shape != shape:
                raise _refusal(
                    entry.name,
                    f"has shape {list(entry.shape)}, not {list(shape)} as r = {config.rank} and the base ask for",
                )
    return SAFETENSORS_DTYPES[next(iter(dtypes))]


def _module_of(name: str) -> tuple[str, str]:
    """The module and `lora_A` or `lora_B`; an empty half when the name is none of ours."""
    module = name.removeprefix(TENSOR_PREFIX)
    for half in ("lora_A", "lora_B"):
        if module.endswith(f".{half}.weight") and name.startswith(TENSOR_PREFIX):
            return module.removesuffix(f".{half}.weight"), half
    return module, ""


def _check_values(
    values: dict[str, TensorValues],
    modules: dict[str, tuple[int, int]],
    config: AdapterConfig,
    limits: AdapterLimits,
) -> float:
    for name, value in values.items():
        if value.not_finite:
            raise _refusal(
                name, f"has {value.not_finite} values that are NaN or infinite, the first at {value.first_not_finite}"
            )
        if value.max_abs > limits.max_abs:
            raise _refusal(name, f"has a value of size {value.max_abs:.3g}; the limit is {limits.max_abs:g}")
    largest = 0.0
    for module in modules:
        a, b = (values[f"{TENSOR_PREFIX}{module}.{half}.weight"] for half in ("lora_A", "lora_B"))
        norm = config.alpha / config.rank * a.norm * b.norm
        if norm > limits.max_norm:
            raise _refusal(
                f"{TENSOR_PREFIX}{module}.lora_B.weight",
                f"with its lora_A and scale gives a norm of {norm:.3g}; the limit is {limits.max_norm:g}",
            )
        largest = max(largest, norm)
    return largest


def _agreed(facts: AdapterFacts, manifest: Manifest, base: BaseFacts) -> AdapterFacts:
    if manifest.base_digest != base.digest:
        raise BadAdapter(
            f"{MANIFEST_FILE}: the adapter is of base {manifest.base_digest}, not of {base.name} {base.digest}",
            field="base_digest",
        )
    expected = Manifest.of(facts, base.digest, no_op=manifest.no_op)
    if manifest != expected:
        given, found = manifest.as_json(), expected.as_json()
        field = next(name for name in given if given[name] != found[name])
        entry = ""
        if isinstance(given[field], dict):
            names = sorted({*given[field], *found[field]})
            entry = next(f" {shown(name)}" for name in names if given[field].get(name) != found[field].get(name))
        raise BadAdapter(f"{MANIFEST_FILE}: {field}{entry} does not agree with the files", field=field)
    return AdapterFacts.from_json({**facts.as_json(), "digest": manifest.digest()})


def _refusal(tensor: str, reason: str) -> BadAdapter:
    return BadAdapter(f"{WEIGHTS_FILE}: tensor {shown(tensor)} {reason}", field=tensor[:200])
