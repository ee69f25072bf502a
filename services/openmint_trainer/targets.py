"""Where on a base model an adapter may sit: found from the built model, never from a table per family."""

import re
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import nn

from openmint.training_targets import why_not
from openmint_trainer.banks import ModuleShape

_DECODER_LAYER = re.compile(r"(^|\.)layers\.\d+\.")
_MARKS = ("is_transposed", "has_bias", "has_gate", "_apply_gate")


class FusedExperts(Protocol):
    """What transformers marks a class of experts with; its weights are [E, out, in] or, transposed, [E, in, out]."""

    is_transposed: bool
    has_bias: bool
    has_gate: bool
    num_experts: int

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class FoundTargets:
    """What of a built model takes adapters, by path, in the model's order.

    `experts` are the modules that hold the weights of many experts in parameters of three dimensions.
    """

    linears: dict[str, nn.Linear]
    experts: dict[str, nn.Module]

    @property
    def shapes(self) -> dict[str, ModuleShape]:
        """Every target's shape: linears by their path, expert weights by that of the parameter."""
        shapes = {path: ModuleShape(linear.out_features, linear.in_features) for path, linear in self.linears.items()}
        for path, module in self.experts.items():
            for name in expert_parameters(module):
                count, first, second = cast(torch.Tensor, getattr(module, name)).shape
                out, into = (second, first) if cast(FusedExperts, module).is_transposed else (first, second)
                shapes[f"{path}.{name}"] = ModuleShape(out, into, count)
        return shapes


def find_targets(model: nn.Module) -> FoundTargets:
    """Every linear and every layer of experts under a decoder layer that can be trained, exported and served.

    Experts are known by what transformers marks them with; a class of experts without the marks stays untouched,
    since nothing says how it computes.
    """
    inside = {path: module for path, module in model.named_modules() if _DECODER_LAYER.search(path)}
    experts = {path: module for path, module in inside.items() if all(hasattr(module, mark) for mark in _MARKS)}
    linears = {
        path: module
        for path, module in inside.items()
        if isinstance(module, nn.Linear) and not why_not(path, has_fused_experts=bool(experts))
    }
    return FoundTargets(linears, experts)


def expert_parameters(module: nn.Module) -> tuple[str, str]:
    """The names of an experts module's weights, the first product's first."""
    return ("gate_up_proj" if cast(FusedExperts, module).has_gate else "up_proj", "down_proj")
