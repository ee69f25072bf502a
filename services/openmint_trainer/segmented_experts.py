"""A layer of routed experts, its weights fused in three dimensions, that carries the adapters of many policies at once.

    y_e = W_e x + bias_e + scale_s * B_se (A_se x)    for the rows of segment s that were sent to expert e

Each token is sent to K experts, which makes T x K rows. They are sorted by expert, and within an expert by segment, so
a policy's rows on one expert lie together and no expert's change of weights is ever made. Every expert's rows are
padded to whole buckets, as a micro-batch is: where a row lies in a product then does not change its bits.

Shape legend: T packed tokens, K experts per token, N padded rows, E experts, I and O features in and out, H hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from openmint_trainer.adapter_products import Group, add_gradients, add_products
from openmint_trainer.packing import padded
from openmint_trainer.segmented_linear import Route, Segment
from openmint_trainer.targets import FusedExperts, expert_parameters


@dataclass(frozen=True, slots=True)
class _Run:
    """Rows start to end (exclusive) of one expert; of one segment, or with the padding when `segment` is -1."""

    expert: int
    start: int
    end: int
    segment: int = -1


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the rows of a batch go: `place` [T * K] is the sorted row of each token's k-th expert."""

    place: torch.Tensor
    rows: int
    experts: tuple[_Run, ...]
    owned: tuple[_Run, ...]


def _lay_out(experts_TK: torch.Tensor, count: int, segments: Sequence[Segment]) -> _Layout:
    tokens, top_k = experts_TK.shape
    width = len(segments) + 1
    owner_T = torch.full((tokens,), width - 1, dtype=torch.int64)
    for index, segment in enumerate(segments):
        owner_T[segment.start : segment.end] = index
    key_P = (experts_TK.cpu().to(torch.int64) * width + owner_T[:, None]).view(-1)
    order_P = torch.argsort(key_P, stable=True)
    counts = torch.bincount(key_P, minlength=count * width).tolist()
    experts: list[_Run] = []
    owned: list[_Run] = []
    shifts = torch.zeros(count, dtype=torch.int64)
    unpadded = start = 0
    for expert in range(count):
        shifts[expert] = start - unpadded
        end = start
        for index, rows in enumerate(counts[expert * width : (expert + 1) * width]):
            if rows and index < len(segments):
                owned.append(_Run(expert, end, end + rows, index))
            end += rows
        unpadded += end - start
        end = start + padded(end - start)
        if end > start:
            experts.append(_Run(expert, start, end))
        start = end
    place_P = torch.empty_like(order_P)
    place_P[order_P] = torch.arange(tokens * top_k) + shifts[key_P[order_P] // width]
    return _Layout(place_P.to(experts_TK.device), start, tuple(experts), tuple(owned))


class _ExpertProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NI: torch.Tensor,
        weight_EOI: torch.Tensor,
        bias_EO: torch.Tensor | None,
        runs: tuple[_Run, ...],
        groups: list[Group],
    ) -> torch.Tensor:
        y_NO = x_NI.new_empty(x_NI.shape[0], weight_EOI.shape[1])
        for run in runs:
            torch.mm(x_NI[run.start : run.end], weight_EOI[run.expert].t(), out=y_NO[run.start : run.end])
            if bias_EO is not None:
                y_NO[run.start : run.end] += bias_EO[run.expert]
        downs = add_products(x_NI, y_NO, groups)
        ctx.save_for_backward(x_NI, weight_EOI, *downs)
        ctx.runs, ctx.groups = runs, groups
        return y_NO

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        grad_NO = gradients[0].contiguous()
        x_NI, weight_EOI, *downs = ctx.saved_tensors
        grad_x_NI = torch.empty_like(x_NI)
        for run in ctx.runs:
            torch.mm(grad_NO[run.start : run.end], weight_EOI[run.expert], out=grad_x_NI[run.start : run.end])
        add_gradients(x_NI, grad_NO, grad_x_NI, ctx.groups, downs)
        return grad_x_NI, None, None, None, None


class SegmentedExperts(nn.Module):
    """Stands in the model where the experts stood, and shares their weights."""

    def __init__(self, experts: nn.Module, path: str, route: Route) -> None:
        super().__init__()
        self.experts = experts
        self._path = path
        self._route = route

    def forward(self, hidden_TH: torch.Tensor, experts_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        """Shapes: hidden states [T, H] and of each token the indices and weights of its experts [T, K]; [T, H]."""
        experts = cast(FusedExperts, self.experts)
        segments = self._route.segments
        layout = _lay_out(experts_TK, experts.num_experts, segments)
        tokens, top_k = experts_TK.shape
        first, second = expert_parameters(self.experts)
        pairs_PH = hidden_TH[:, None].expand(tokens, top_k, -1).reshape(tokens * top_k, -1)
        x_NH = pairs_PH.new_zeros(layout.rows, pairs_PH.shape[1]).index_copy(0, layout.place, pairs_PH)
        inner_NI = experts._apply_gate(self._product(x_NH, first, layout, segments))  # pyright: ignore[reportPrivateUsage]
        y_PH = self._product(inner_NI, second, layout, segments).index_select(0, layout.place)
        weighted_TKH = y_PH.view(tokens, top_k, -1) * weights_TK[..., None]
        return weighted_TKH.sum(dim=1).to(hidden_TH.dtype)

    def _product(self, x_NI: torch.Tensor, name: str, layout: _Layout, segments: Sequence[Segment]) -> torch.Tensor:
        experts = cast(FusedExperts, self.experts)
        weight = cast(torch.Tensor, getattr(self.experts, name))
        bias_EO = cast(torch.Tensor, getattr(self.experts, f"{name}_bias")) if experts.has_bias else None
        path = f"{self._path}.{name}"
        groups = [
            Group(slot.views[path][run.expert], run.start, run.end, slot.shape.scale)
            for run in layout.owned
            if path in (slot := segments[run.segment].slot).views
        ]
        weight_EOI = weight.transpose(1, 2) if experts.is_transposed else weight
        y_NO = _ExpertProduct.apply(x_NI.contiguous(), weight_EOI, bias_EO, layout.experts, groups)
        assert isinstance(y_NO, torch.Tensor)
        return y_NO
