# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportAttributeAccessIssue=false
"""vLLM 0.32: are the LoRA kernels right for every row of a mixed batch? Asked of the engine itself, before it is ready.

Each check fills the first and the last slot with strong adapters and runs one real module on batches in which rows of
the base, of one adapter and of the other stand in every order.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-3}
"""Greatest difference from the reference, relative to its largest value."""

EXPERT_STRENGTH = 0.3
"""Standard deviation of B on experts: an adapter then counts as much as the base's own weights."""

Pairs = tuple[list[torch.Tensor], list[torch.Tensor]]


def check_linear(manager: Any) -> str:
    """Run the LoRA kernel of one linear module. Empty, or what is wrong with it."""
    found = _first(manager, lambda module: hasattr(module, "output_slices"))
    if found is None:
        return ""
    name, module = found
    numbers = _Numbers(module.lora_a_stacked[0])
    rank = manager.lora_config.max_lora_rank
    adapters: dict[int, Pairs] = {}
    for slot in {0, manager.lora_slots - 1}:
        a = [numbers.draw(rank, s.shape[-1]) for s in module.lora_a_stacked]
        b = [numbers.draw(s.shape[-2], rank) for s in module.lora_b_stacked]
        packed = name in manager.packed_modules
        module.set_lora(slot, a if packed else a[0], b if packed else b[0])
        adapters[slot] = (a, b)

    def run(slot_of_row: list[int]) -> str:
        x = numbers.draw(len(slot_of_row), module.lora_a_stacked[0].shape[-1])
        y = x.new_zeros(len(slot_of_row), sum(module.output_slices))
        if any(slot >= 0 for slot in slot_of_row):
            module.punica_wrapper.add_lora_linear(
                y, x, module.lora_a_stacked, module.lora_b_stacked, 1.0, module.output_slices
            )
        return _compare_linear(slot_of_row, x, y, adapters)

    return _on_mixed_batches(manager, name, module, adapters, run)


def check_experts(manager: Any) -> str:
    """Run one layer of experts on CPU, where its kernel is ours. Empty, or what is wrong with it."""
    from vllm.lora.layers import FusedMoEWithLoRA
    from vllm.platforms import current_platform

    found = _first(manager, lambda module: isinstance(module, FusedMoEWithLoRA))
    if found is None or not current_platform.is_cpu():
        return ""
    name, module = found
    layer = module.base_layer.routed_experts
    gate_up_EJH, down_EHI = layer.w13_weight, layer.w2_weight
    experts, top_k = gate_up_EJH.shape[0], module.moe_config.experts_per_token
    numbers = _Numbers(module.w13_lora_a_stacked[0])
    gate_a, up_a = module.w13_lora_a_stacked
    gate_b, up_b = module.w13_lora_b_stacked
    shapes = [(gate_a, gate_b), (module.w2_lora_a_stacked[0], module.w2_lora_b_stacked[0]), (up_a, up_b)]
    adapters: dict[int, Pairs] = {}
    for slot in {0, manager.lora_slots - 1}:
        a = [numbers.draw(*stacked.shape[1:]) * stacked.shape[-1] ** -0.5 for stacked, _ in shapes]
        b = [numbers.draw(*stacked.shape[1:]) * EXPERT_STRENGTH for _, stacked in shapes]
        module.set_lora(slot, a, b)
        adapters[slot] = (a, b)

    def run(slot_of_row: list[int]) -> str:
        count = len(slot_of_row)
        x_TH = numbers.draw(count, gate_up_EJH.shape[2])
        ids_TK = torch.stack([numbers.choose(experts, top_k) for _ in range(count)]).to(x_TH.device)
        weights_TK = numbers.draw(count, top_k).float().softmax(dim=1)
        y_TH = module._moe_kernel.apply(
            hidden_states=x_TH,
            w1=gate_up_EJH,
            w2=down_EHI,
            topk_weights=weights_TK,
            topk_ids=ids_TK.to(torch.int32),
            activation=layer.activation,
            global_num_experts=layer.global_num_experts,
            expert_map=None,
            apply_router_weight_on_input=False,
        )
        for row, slot in enumerate(slot_of_row):
            wanted_H = sum(
                weight * _one_expert(x_TH[row], gate_up_EJH[expert], down_EHI[expert], adapters.get(slot), expert)
                for weight, expert in zip(weights_TK[row], ids_TK[row].tolist(), strict=True)
            )
            wrong = _difference(y_TH[row], wanted_H)
            if wrong:
                return f"row {row} of slot {slot} {wrong}"
        return ""

    return _on_mixed_batches(manager, name, module, adapters, run)


def _one_expert(
    x_H: torch.Tensor, gate_up_JH: torch.Tensor, down_HI: torch.Tensor, pairs: Pairs | None, expert: int
) -> torch.Tensor:
    """What one expert makes of one token, written down plainly, in float32."""
    gate_JH, up_JH = gate_up_JH.chunk(2)

    def project(x: torch.Tensor, weight: torch.Tensor, projection: int) -> torch.Tensor:
        y = weight.float() @ x
        if pairs is None:
            return y
        a, b = pairs
        return y + b[projection][expert].float() @ (a[projection][expert].float() @ x)

    x = x_H.float()
    return project(functional.silu(project(x, gate_JH, 0)) * project(x, up_JH, 2), down_HI, 1)


def _on_mixed_batches(
    manager: Any, name: str, module: Any, adapters: dict[int, Pairs], run: Callable[[list[int]], str]
) -> str:
    """Run batches of every kind, then leave the module's slots empty."""
    from vllm.lora.layers.utils import LoRAMapping

    slots, last = manager.lora_slots, manager.lora_slots - 1
    try:
        for slot_of_row in ([-1, last, -1, 0, last], [-1] * 9 + [last] * 20 + [0] * 20 + [-1], [last] * 4, [-1, -1]):
            ids = tuple(slot + 1 if slot >= 0 else 0 for slot in slot_of_row)
            mapping = LoRAMapping(ids, ids[:1], is_prefill=True)
            module.punica_wrapper.update_metadata(mapping, list(range(1, slots + 1)), slots + 1, manager.vocab_size)
            wrong = run(slot_of_row)
            if wrong:
                return f"{name}: {wrong}"
    finally:
        for slot in adapters:
            module.reset_lora(slot)
        manager._last_mapping = None
    return ""


def _compare_linear(slot_of_row: list[int], x_TI: torch.Tensor, y_TO: torch.Tensor, adapters: dict[int, Pairs]) -> str:
    for row, slot in enumerate(slot_of_row):
        if slot < 0:
            if bool(y_TO[row].any()):
                return f"row {row} of the base got an adapter's weights"
            continue
        a, b = adapters[slot]
        parts = [(x_TI[row].float() @ a_RI.float().t()) @ b_OR.float().t() for a_RI, b_OR in zip(a, b, strict=True)]
        wrong = _difference(y_TO[row], torch.cat(parts))
        if wrong:
            return f"row {row} of slot {slot} {wrong}"
    return ""


def _difference(found: torch.Tensor, wanted: Any) -> str:
    error = float((found.float() - wanted).abs().max() / wanted.abs().max())
    return "" if error <= TOLERANCE[found.dtype] else f"is off by {error:.2g} of its size"


def _first(manager: Any, is_wanted: Callable[[Any], bool]) -> tuple[str, Any] | None:
    return next(((name, module) for name, module in manager.modules.items() if is_wanted(module)), None)


class _Numbers:
    """The same random numbers at every start, in the dtype and on the device of the engine's LoRA weights."""

    def __init__(self, like: torch.Tensor) -> None:
        self._like = like
        self._random = torch.Generator().manual_seed(0)

    def draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self._random).to(self._like)

    def choose(self, among: int, count: int) -> torch.Tensor:
        return torch.randperm(among, generator=self._random)[:count]
