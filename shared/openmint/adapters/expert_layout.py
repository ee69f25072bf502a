"""How PEFT lays out an adapter on expert weights that are fused in one parameter of three dimensions.

In a PEFT folder each such parameter has one A [E * r, in] with the expert slowest and one B [out, r * E] with the
expert fastest, `target_parameters` names it, and the tensors are named after wrappers: the first product's is inside
the second's, so `gate_up_proj` is at `….experts.base_layer` and `down_proj` at `….experts`; the only one is there too.
Checked against stock PEFT 0.21 by its logits.

Shape legend: E experts, r rank.
"""

import re
from collections.abc import Iterable, Mapping

Shape3 = tuple[int, int, int]
"""Experts, features out, features in."""

_NUMBERED = re.compile(r"^(.*\.experts)\.([0-9]+)\.(gate_proj|up_proj|down_proj)$")
_LAYER = re.compile(r"^.*?(?:^|\.)layers\.[0-9]+\.")
_ORDER = ("gate_up_proj", "up_proj", "down_proj")


def is_numbered_expert(module: str) -> bool:
    """Whether a module is one expert's own linear, as files of a base and adapters per expert name it."""
    return _NUMBERED.match(module) is not None


def fuse_numbered(modules: Mapping[str, tuple[int, int]]) -> dict[str, Shape3]:
    """The fused parameters that a model builds of its experts' own linears (out, in), by path."""
    found: dict[tuple[str, str], dict[int, tuple[int, int]]] = {}
    for path, shape in modules.items():
        match = _NUMBERED.match(path)
        if match:
            found.setdefault((match[1], match[3]), {})[int(match[2])] = shape
    fused: dict[str, Shape3] = {}
    for (layer, kind), experts in sorted(found.items()):
        if len(set(experts.values())) != 1 or sorted(experts) != list(range(len(experts))):
            continue
        out_size, in_size = experts[0]
        if kind == "gate_proj":
            fused[f"{layer}.gate_up_proj"] = (len(experts), 2 * out_size, in_size)
        elif kind == "down_proj" or (layer, "gate_proj") not in found:
            fused[f"{layer}.{kind}"] = (len(experts), out_size, in_size)
    return fused


def parameter_name(path: str) -> str:
    """What `target_parameters` calls it: the path below its layer, such as `mlp.experts.down_proj`."""
    return _LAYER.sub("", path)


def wrapper_modules(paths: Iterable[str]) -> dict[str, str]:
    """For each adapted parameter, the module that PEFT names its tensors after."""
    by_layer: dict[str, list[str]] = {}
    for path in paths:
        layer, _, name = path.rpartition(".")
        by_layer.setdefault(layer, []).append(name)
    wrappers: dict[str, str] = {}
    for layer, names in by_layer.items():
        for depth, name in enumerate(sorted(names, key=_ORDER.index, reverse=True)):
            wrappers[f"{layer}.{name}"] = layer + ".base_layer" * depth
    return wrappers


def lora_shape(half: str, shape: Shape3, rank: int) -> tuple[int, int]:
    """The shape of `lora_A` or `lora_B` in a PEFT folder."""
    experts, out_size, in_size = shape
    return (experts * rank, in_size) if half == "lora_A" else (out_size, rank * experts)
