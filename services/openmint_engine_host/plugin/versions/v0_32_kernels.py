# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportAttributeAccessIssue=false
"""vLLM 0.32 on CPU: its LoRA kernels, replaced by ours."""

from typing import Any

import torch

from openmint_engine_host.plugin import cpu_experts, cpu_lora


def repair_linear() -> None:
    """Let linear layers take rows by adapter, and leave rows of the base alone."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    stock_update = PunicaWrapperCPU.update_metadata

    def update_metadata(self: Any, *arguments: Any, **named: Any) -> None:
        stock_update(self, *arguments, **named)
        self._openmint_grouping = cpu_lora.group_rows(self.token_lora_indices.tolist())

    def add_lora_linear(
        self: Any,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_: Any,
    ) -> None:
        grouping = getattr(self, "_openmint_grouping", None) or cpu_lora.Grouping()
        y_TO, x_TI = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
        cpu_lora.add_lora(y_TO, x_TI, lora_a_stacked, lora_b_stacked, scale, output_slices, grouping)

    wrapper: Any = PunicaWrapperCPU
    wrapper.update_metadata = update_metadata
    wrapper.add_lora_linear = add_lora_linear


def bring_experts_to_cpu() -> None:
    """Run the experts of a LoRA engine in torch: for them vLLM takes its Triton kernels, on CPU too."""
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts

    def apply(
        self: Any,
        output: torch.Tensor,
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        activation: Any,
        global_num_experts: int,
        expert_map: torch.Tensor | None,
        a1q_scale: torch.Tensor | None,
        a2_scale: torch.Tensor | None,
        workspace13: torch.Tensor,
        workspace2: torch.Tensor,
        expert_tokens_meta: Any,
        apply_router_weight_on_input: bool,
    ) -> None:
        is_plain = activation == MoEActivation.SILU and expert_map is None and not apply_router_weight_on_input
        if not is_plain or self.quant_dtype is not None or self.w1_bias is not None or self.w2_bias is not None:
            # Met in the warm-up already, so that such an engine never becomes ready.
            raise ValueError("openmint runs experts on CPU with SiLU, unquantized, without biases and on one device")
        context = self._lora_context
        slot_of_token = torch.full((hidden_states.shape[0],), -1, dtype=torch.int64)
        lora = None
        if context is not None and getattr(context.punica_wrapper, "_openmint_grouping", cpu_lora.Grouping()).groups:
            known = context.punica_wrapper.token_lora_indices[: hidden_states.shape[0]]
            slot_of_token[: known.shape[0]] = known
            lora = expert_lora(context)
        output.copy_(cpu_experts.run_experts(hidden_states, w1, w2, topk_weights, topk_ids, lora, slot_of_token))

    experts: Any = TritonExperts
    experts.apply = apply


def expert_lora(context: Any) -> cpu_experts.ExpertLora:
    """The stacked weights of a layer of experts, as vLLM's LoRA layer shares them with its kernel."""
    a, b = context.w13_lora_a_stacked, context.w13_lora_b_stacked
    return cpu_experts.ExpertLora(
        cpu_experts.LoraPair(a[0], b[0]),
        cpu_experts.LoraPair(a[1], b[1]),
        cpu_experts.LoraPair(context.w2_lora_a_stacked[0], context.w2_lora_b_stacked[0]),
    )
