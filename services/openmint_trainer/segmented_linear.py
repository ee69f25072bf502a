"""A linear of the base model that carries the adapters of many policies at once.

    y = W x + bias + scale_s * B_s (A_s x)    for the rows of segment s

Rows outside every segment see the base alone.

Shape legend: T packed tokens, I and O features in and out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from openmint_trainer.adapter_products import Group, add_gradients, add_products
from openmint_trainer.banks import Slot


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows start to end (exclusive) of the packed batch belong to the policy in this slot."""

    slot: Slot
    start: int
    end: int


@dataclass(slots=True)
class Route:
    """Who owns which rows of the batch that is now in the model. Every adapted module looks here."""

    segments: Sequence[Segment] = field(default=())


class _SegmentedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, groups: list[Group]
    ) -> torch.Tensor:
        y_TO = F.linear(x_TI, weight_OI, bias_O)
        downs = add_products(x_TI, y_TO, groups)
        ctx.save_for_backward(x_TI, weight_OI, *downs)
        ctx.groups = groups
        return y_TO

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        grad_TO = gradients[0]
        x_TI, weight_OI, *downs = ctx.saved_tensors
        grad_x_TI = grad_TO @ weight_OI
        add_gradients(x_TI, grad_TO, grad_x_TI, ctx.groups, downs)
        return grad_x_TI, None, None, None


class SegmentedLinear(nn.Module):
    """Stands in the model where the plain linear stood, and shares its weight."""

    def __init__(self, linear: nn.Linear, path: str, route: Route) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self._path = path
        self._route = route

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shapes: x is [..., T, I] with one packed row; the answer [..., T, O]."""
        groups = [
            Group(s.slot.views[self._path][0], s.start, s.end, s.slot.shape.scale)
            for s in self._route.segments
            if self._path in s.slot.views
        ]
        flat = x.reshape(-1, self.in_features)
        y = _SegmentedLinear.apply(flat, self.weight, self.bias, groups)
        assert isinstance(y, torch.Tensor)
        return y.view(*x.shape[:-1], self.out_features)
