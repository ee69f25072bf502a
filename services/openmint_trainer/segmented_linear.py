"""A linear of the base model that carries the adapters of many policies at once.

    y = W x + bias + scale_s * B_s (A_s x)    for the rows of segment s

Rows outside every segment see the base alone. Gradients of A and B go straight into the slot's float32 buffers:
through autograd's indexing they would each cost a buffer as large as the whole bank.

Shape legend: T packed tokens, I and O features in and out, R the policy's own rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from openmint_trainer.banks import AdapterViews, Slot


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows start to end (exclusive) of the packed batch belong to the policy in this slot."""

    slot: Slot
    start: int
    end: int


@dataclass(slots=True)
class Route:
    """Who owns which rows of the batch that is now in the model. Every adapted linear looks here."""

    segments: Sequence[Segment] = field(default=())


@dataclass(frozen=True, slots=True)
class _Part:
    views: AdapterViews
    start: int
    end: int
    scale: float


class _SegmentedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, parts: list[_Part]
    ) -> torch.Tensor:
        y_TO = F.linear(x_TI, weight_OI, bias_O)
        downs: list[torch.Tensor] = []
        for part in parts:
            down_TR = x_TI[part.start : part.end] @ part.views.a.t()
            y_TO[part.start : part.end].addmm_(down_TR, part.views.b.t(), alpha=part.scale)
            downs.append(down_TR)
        ctx.save_for_backward(x_TI, weight_OI, *downs)
        ctx.parts = parts
        return y_TO

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        grad_TO = gradients[0]
        x_TI, weight_OI, *downs = ctx.saved_tensors
        grad_x_TI = grad_TO @ weight_OI
        for part, down_TR in zip(ctx.parts, downs, strict=True):
            grad_part = grad_TO[part.start : part.end]
            grad_down_TR = (grad_part @ part.views.b).mul_(part.scale)
            part.views.grad_a.add_(grad_down_TR.t() @ x_TI[part.start : part.end])
            part.views.grad_b.add_(grad_part.t() @ down_TR, alpha=part.scale)
            grad_x_TI[part.start : part.end].addmm_(grad_down_TR, part.views.a)
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
        parts = [
            _Part(s.slot.views[self._path], s.start, s.end, s.slot.shape.scale)
            for s in self._route.segments
            if self._path in s.slot.views
        ]
        flat = x.reshape(-1, self.in_features)
        y = _SegmentedLinear.apply(flat, self.weight, self.bias, parts)
        assert isinstance(y, torch.Tensor)
        return y.view(*x.shape[:-1], self.out_features)
