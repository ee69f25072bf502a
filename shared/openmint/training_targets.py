"""Which parts of a base model a policy may be trained on, by name, and why not on the others.

The same rules hold for a built model (the trainer) and for what the catalogue knows of a base's files (the gateway, a
dry run). No torch here.
"""

from collections.abc import Iterable, Mapping, Sequence

from openmint.adapters.expert_layout import Shape3, is_numbered_expert
from openmint.errors import BadRequest

_INDEXER = (
    "is of the sparse-attention indexer, whose choice of the top positions is not differentiable: "
    "it would never get a gradient"
)
_KV_B = "is of multi-head latent attention, where engines fold kv_b_proj into others and ignore an adapter on it"
_ROUTER = "chooses experts; no engine serves an adapter on a router"
_SHARED = (
    "is taken by PEFT for the routed experts' own projection on a base with fused experts, "
    "so that an adapter on a dense layer or a shared expert can't be told from it; train gate_up_proj and down_proj"
)

_NEVER = {"kv_b_proj": _KV_B, "gate": _ROUTER, "router": _ROUTER}
_BY_NAME = {**_NEVER, **dict.fromkeys(("wq_b", "wk", "weights_proj"), _INDEXER)}
"""Of an indexer by their names alone; another model's linear of such a name is allowed and never asks."""

_EXPERT_NAMES = frozenset({"gate_proj", "up_proj", "down_proj"})


def last_part(path: str) -> str:
    """`q_proj` of `model.layers.0.self_attn.q_proj`."""
    return path.rpartition(".")[2]


def why_not(path: str, *, has_fused_experts: bool) -> str:
    """Why a linear under a decoder layer takes no adapter; empty when it takes one."""
    if ".indexer." in path:
        return _INDEXER
    last = last_part(path)
    if has_fused_experts and last in _EXPERT_NAMES:
        return _SHARED
    return _NEVER.get(last, "")


def trained_paths(modules: Iterable[str], experts: Mapping[str, Shape3]) -> tuple[str, ...]:
    """What of a base may be trained: its linears, and the fused weights of its experts instead of each expert's own."""
    linears = (
        path for path in modules if not is_numbered_expert(path) and not why_not(path, has_fused_experts=bool(experts))
    )
    return (*linears, *experts)


def choose_targets(wanted: Sequence[str] | None, available: Iterable[str]) -> tuple[str, ...]:
    """The sorted target names of a policy; None means all that the base has.

    A name stands for every linear or fused expert weight whose path ends in it; `available` are those paths.
    Raises: BadRequest naming the target that can't be had, and why or which are allowed.
    """
    allowed = sorted({last_part(path) for path in available})
    if wanted is None:
        return tuple(allowed)
    if not wanted:
        raise BadRequest("targets is empty; leave it out to adapt every linear", field="adapter.targets")
    for name in wanted:
        if name in allowed:
            continue
        reason = _BY_NAME.get(name)
        if name in _EXPERT_NAMES and "gate_up_proj" in allowed:
            reason = _SHARED
        if reason:
            raise BadRequest(f"target {name!r} {reason}; allowed are {', '.join(allowed)}", field="adapter.targets")
        raise BadRequest(
            f"target {name[:80]!r} is not a linear of this base; allowed are {', '.join(allowed)}",
            field="adapter.targets",
        )
    return tuple(sorted(set(wanted)))
