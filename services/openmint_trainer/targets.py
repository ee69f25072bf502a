"""Which linears of a base model an adapter may sit on: found from the built model, never from a table per family."""

import re
from collections.abc import Iterable, Sequence

from torch import nn

from openmint.errors import BadRequest

_DECODER_LAYER = re.compile(r"(^|\.)layers\.\d+\.")

UNTRAINABLE = re.compile(r"\.indexer\.")
"""The linears of a sparse-attention indexer get no gradient: its top-k is not differentiable."""


def find_targets(model: nn.Module) -> dict[str, nn.Linear]:
    """Every trainable linear under a decoder layer, by its path in the model, in the model's order."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and _DECODER_LAYER.search(path) and not UNTRAINABLE.search(path)
    }


def last_part(path: str) -> str:
    """`q_proj` of `model.layers.0.self_attn.q_proj`."""
    return path.rpartition(".")[2]


def choose_targets(wanted: Sequence[str] | None, available: Iterable[str]) -> tuple[str, ...]:
    """The sorted target names of a policy; None means all that the base has.

    Raises: BadRequest naming the unknown target and the allowed ones.
    """
    allowed = sorted({last_part(path) for path in available})
    if wanted is None:
        return tuple(allowed)
    for name in wanted:
        if name not in allowed:
            raise BadRequest(
                f"target {name[:80]!r} is not a linear of this base; allowed are {', '.join(allowed)}",
                field="adapter.targets",
            )
    if not wanted:
        raise BadRequest("targets is empty; leave it out to adapt every linear", field="adapter.targets")
    return tuple(sorted(set(wanted)))
