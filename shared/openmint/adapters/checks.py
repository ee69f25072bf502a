"""Everything an adapter must be before an engine or PEFT may read it. An engine itself checks almost none of this.

`check_adapter_folder` runs in this process; for folders from outside use `inspection.inspect_in_child`. Each refusal is
one BadAdapter that names the file, tensor or field.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from openmint.adapters.adapter_config import AdapterConfig, parse_adapter_config
from openmint.adapters.escaping import shown
from openmint.adapters.expert_layout import is_numbered_expert, lora_shape, parameter_name, wrapper_modules
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
        wanted = _wanted_pairs(config, base)
        # As large as it would be at the highest rank: what is wrong with a file of another rank is said by its shapes.
        elements = _elements(wanted) // config.rank * limits.max_rank
        max_bytes = 8 + limits.max_header_bytes + max(DTYPE_BYTES.values()) * elements
        with folder.open(WEIGHTS_FILE, max_bytes) as descriptor:
            header = read_header_of(
                descriptor, WEIGHTS_FILE, max_header_bytes=limits.max_header_bytes, max_tensors=limits.max_tensors
            )
            wanted = _without_absent_experts(wanted, header.tensors)
            dtype = _check_tensors(header.tensors, wanted, config, base)
            # Shapes before values: a file with a wrong shape is not worth reading.
            values = {entry.name: read_values(descriptor, entry) for entry in header.tensors}
            max_norm = _check_values(values, wanted, config, limits)
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
            parameters=config.parameters,
        )
        if MANIFEST_FILE not in folder.names:
            if needs_manifest:
                raise BadAdapter(f"{MANIFEST_FILE} is missing", field=MANIFEST_FILE)
            return facts
        manifest = Manifest.parse(folder.read(MANIFEST_FILE, limits.max_manifest_bytes))
        return _agreed(facts, manifest, base)


_Pair = tuple[tuple[int, int], tuple[int, int]]
"""The shapes of A and B."""


def _wanted_pairs(config: AdapterConfig, base: BaseFacts) -> dict[str, _Pair]:
    """What the configuration asks for: the module that the tensors are named after -> shapes."""
    rank = config.rank
    pairs: dict[str, _Pair] = {
        module: ((rank, in_size), (out_size, rank))
        for module, (out_size, in_size) in base.modules.items()
        if module.rpartition(".")[2] in config.targets
    }
    fused = {path: shape for path, shape in base.experts.items() if parameter_name(path) in config.parameters}
    for path, module in wrapper_modules(fused).items():
        pairs[module] = (lora_shape("lora_A", fused[path], rank), lora_shape("lora_B", fused[path], rank))
    return pairs


def _elements(pairs: Mapping[str, _Pair]) -> int:
    return sum(a[0] * a[1] + b[0] * b[1] for a, b in pairs.values())


def _without_absent_experts(pairs: dict[str, _Pair], tensors: tuple[TensorEntry, ...]) -> dict[str, _Pair]:
    """Experts' own linears are wanted only of an adapter that is on some: a model that holds its experts fused has
    linears of the same names elsewhere, and an adapter on those is whole without them."""
    if any(is_numbered_expert(_module_of(entry.name)[0]) for entry in tensors):
        return pairs
    return {module: pair for module, pair in pairs.items() if not is_numbered_expert(module)}


def _check_tensors(
    tensors: tuple[TensorEntry, ...], wanted: dict[str, _Pair], config: AdapterConfig, base: BaseFacts
) -> str:
    found: dict[str, TensorEntry] = {}
    known = {*base.modules, *wanted}
    matched = sum(1 for entry in tensors if _module_of(entry.name)[0] in known)
    for entry in tensors:
        module, half = _module_of(entry.name)
        if not half:
            raise _refusal(entry.name, "is no LoRA weight: names end with .lora_A.weight or .lora_B.weight")
        if module not in known:
            raise _refusal(
                entry.name,
                f"names no module of {base.name!r} that takes LoRA ({matched} of {len(tensors)} tensors do)",
            )
        if module not in wanted:
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
    for module, pair in wanted.items():
        for half, shape in zip(("lora_A", "lora_B"), pair, strict=True):
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
    wanted: Mapping[str, _Pair],
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
    for module in wanted:
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
