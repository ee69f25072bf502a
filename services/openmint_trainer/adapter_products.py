"""The low-rank products of many adapters over one batch: each group of rows meets its own pair of matrices.

    forward   y[g] += scale_g * B_g (A_g x[g])
    backward  grad_x[g] += A_g' d,  grad_A_g += d x[g]',  grad_B_g += scale_g * grad_y[g] (A_g x[g])',
              with d = scale_g * B_g' grad_y[g]

A group is a policy's rows on a linear, or a policy's rows on one expert; nothing here knows which. The gradients of A
and B go straight into the slots' float32 buffers: through autograd's indexing each would cost a buffer as large as the
whole bank.

Shape legend: N rows, I and O features in and out, R rank, G groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from openmint_trainer.banks import AdapterViews


@dataclass(frozen=True, slots=True)
class Group:
    """Rows start to end (exclusive) go through this pair."""

    views: AdapterViews
    start: int
    end: int
    scale: float


def add_products(x_NI: torch.Tensor, y_NO: torch.Tensor, groups: Sequence[Group]) -> list[torch.Tensor]:
    """Add every group's product to y in place; returns A x of each, [rows, R], for the way back."""
    downs: list[torch.Tensor] = []
    for group in groups:
        down_R = x_NI[group.start : group.end] @ group.views.a.t()
        y_NO[group.start : group.end].addmm_(down_R, group.views.b.t(), alpha=group.scale)
        downs.append(down_R)
    return downs


def add_gradients(
    x_NI: torch.Tensor,
    grad_y_NO: torch.Tensor,
    grad_x_NI: torch.Tensor,
    groups: Sequence[Group],
    downs: Sequence[torch.Tensor],
) -> None:
    """Add every group's gradients to its slot's buffers, and to the gradient of x in place."""
    for group, down_R in zip(groups, downs, strict=True):
        rows = slice(group.start, group.end)
        grad_down_R = (grad_y_NO[rows] @ group.views.b).mul_(group.scale)
        group.views.grad_a.add_(grad_down_R.t() @ x_NI[rows])
        group.views.grad_b.add_(grad_y_NO[rows].t() @ down_R, alpha=group.scale)
        grad_x_NI[rows].addmm_(grad_down_R, group.views.a)
