"""A layer of experts with LoRA for a mixed batch on CPU, in plain torch: vLLM has this for Triton alone.

Each token goes to K experts, so a layer has T x K rows. They are sorted by expert and, within an expert, by slot:
then the rows of an expert lie together, and so do those of one adapter on one expert, and nothing needs a mask.
Rows of the base are in no adapter's range and are never touched.

Legend: T tokens, K experts per token, N = T x K sorted rows, E experts, S slots, H hidden, I intermediate, R rank.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class LoraPair:
    """One projection's A [S, E, R, in] and B [S, E, out, R] of every slot and expert, scale folded in."""

    a_SERI: torch.Tensor
    b_SEOR: torch.Tensor


@dataclass(frozen=True, slots=True)
class ExpertLora:
    """The LoRA pairs of one layer's experts."""

    gate: LoraPair
    up: LoraPair
    down: LoraPair

    @property
    def slots(self) -> int:
        """How many adapters the pairs hold."""
        return self.gate.a_SERI.shape[0]


@dataclass(frozen=True, slots=True)
class Run:
    """Sorted rows [start, end) of one expert; of one adapter, or of all when `slot` is -1."""

    start: int
    end: int
    expert: int
    slot: int = -1


@dataclass(frozen=True, slots=True)
class Routing:
    """Which rows go where: every expert's, and every adapter's on every expert."""

    token_N: torch.Tensor
    weight_N: torch.Tensor
    experts: tuple[Run, ...]
    adapters: tuple[Run, ...]


def run_experts(
    x_TH: torch.Tensor,
    gate_up_EJH: torch.Tensor,
    down_EHI: torch.Tensor,
    weights_TK: torch.Tensor,
    experts_TK: torch.Tensor,
    lora: ExpertLora | None,
    slot_of_token_T: torch.Tensor,
) -> torch.Tensor:
    """sum over k of weight[t, k] * down(silu(gate(x)) * up(x)), each projection with its adapter's low-rank part.

    Shapes: `gate_up_EJH` is [E, 2 I, H], gate first. `slot_of_token_T` has -1 for a token of the base.
    Returns [T, H] in float32.
    """
    slots = lora.slots if lora is not None else 0
    routing = route(weights_TK, experts_TK, slot_of_token_T, slots)
    x_NH = x_TH[routing.token_N]
    gate_up_NJ = x_TH.new_empty(x_NH.shape[0], gate_up_EJH.shape[1])
    for run in routing.experts:
        torch.mm(x_NH[run.start : run.end], gate_up_EJH[run.expert].t(), out=gate_up_NJ[run.start : run.end])
    gate_NI, up_NI = gate_up_NJ.chunk(2, dim=1)
    if lora is not None:
        add_lora(gate_NI, x_NH, lora.gate, routing.adapters)
        add_lora(up_NI, x_NH, lora.up, routing.adapters)
    inner_NI = functional.silu(gate_NI) * up_NI
    out_NH = x_TH.new_empty(x_NH.shape[0], down_EHI.shape[1])
    for run in routing.experts:
        torch.mm(inner_NI[run.start : run.end], down_EHI[run.expert].t(), out=out_NH[run.start : run.end])
    if lora is not None:
        add_lora(out_NH, inner_NI, lora.down, routing.adapters)
    sum_TH = torch.zeros(x_TH.shape[0], out_NH.shape[1], dtype=torch.float32)
    return sum_TH.index_add_(0, routing.token_N, out_NH.float() * routing.weight_N.unsqueeze(1))


def route(weights_TK: torch.Tensor, experts_TK: torch.Tensor, slot_of_token_T: torch.Tensor, slots: int) -> Routing:
    """Sort the rows of a batch by expert and slot."""
    top_k = experts_TK.shape[1]
    width = slots + 1
    key_N = (experts_TK.to(torch.int64) * width + slot_of_token_T.unsqueeze(1) + 1).view(-1)
    key_N, order_N = torch.sort(key_N, stable=True)
    keys, counts = torch.unique_consecutive(key_N, return_counts=True)
    experts: list[Run] = []
    adapters: list[Run] = []
    start = 0
    for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
        expert, slot = key // width, key % width - 1
        if experts and experts[-1].expert == expert:
            experts[-1] = Run(experts[-1].start, start + count, expert)
        else:
            experts.append(Run(start, start + count, expert))
        if slot >= 0:
            adapters.append(Run(start, start + count, expert, slot))
        start += count
    return Routing(order_N // top_k, weights_TK.reshape(-1)[order_N].float(), tuple(experts), tuple(adapters))


def add_lora(y_NO: torch.Tensor, x_NI: torch.Tensor, pair: LoraPair, adapters: tuple[Run, ...]) -> None:
    """y[n] += x[n] A^T B^T with the pair of row n's slot and expert, in place, for the rows of `adapters`."""
    for run in adapters:
        h_MR = x_NI[run.start : run.end] @ pair.a_SERI[run.slot, run.expert].t()
        y_NO[run.start : run.end].addmm_(h_MR, pair.b_SEOR[run.slot, run.expert].t())
