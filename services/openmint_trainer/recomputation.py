"""Decoder layers whose inner activations are made again on the way back instead of being kept.

Only each layer's input stays in memory: about a third more computing for a fraction of the memory.
"""

import re
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from openmint_trainer.segmented_linear import Route

_LAYER = re.compile(r"(^|\.)layers\.\d+$")


def recompute_layers(model: nn.Module, route: Route) -> int:
    """Wrap every decoder layer of a model in place; returns how many.

    A layer is computed again under the route that it was first computed under, whatever the route is by then.
    Raises: ValueError when the model has no decoder layers.
    """
    layers = [module for path, module in model.named_modules() if _LAYER.search(path)]
    if not layers:
        raise ValueError("the model has no decoder layers that could be computed again")
    for layer in layers:
        layer.forward = _recomputed(layer.forward, route)
    return len(layers)


def _recomputed(forward: Callable[..., Any], route: Route) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        segments = route.segments

        def run(*again: Any, **also: Any) -> Any:
            before, route.segments = route.segments, segments
            try:
                return forward(*again, **also)
            finally:
                route.segments = before

        # The base has no dropout, so there is no random state to bring back.
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return wrapped
