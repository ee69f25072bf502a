"""Every architecture that the trainer knows, as a tiny random base; each is built in well under a second."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 96

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SLIDING = {"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
}
_ROUTED = {
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_INDEXED = {"index_topk": 6, "index_n_heads": 2, "index_head_dim": 16}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 16},
    "gemma3_text": {**_SLIDING, "query_pre_attn_scalar": 16},
    "qwen3_moe": {"head_dim": 16, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {**_SLIDING, "intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {**_LATENT, **_ROUTED},
    "deepseek_v32": {**_LATENT, **_ROUTED, **_INDEXED},
    "glm_moe_dsa": {**_LATENT, **_ROUTED, **_INDEXED},
    "kimi_linear": {
        **_LATENT,
        **_ROUTED,
        "q_lora_rank": None,
        "linear_num_heads": 2,
        "linear_head_dim": 16,
        "linear_conv_kernel_dim": 4,
        "layer_types": ["linear_attention", "full_attention"],
    },
}


def build(model_type: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(11)
    config = AutoConfig.for_model(model_type, **{**_COMMON, **CONFIGS[model_type], **changes})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    # Routers and sinks start at zero or at nothing; random ones show more.
    for name, parameter in model.named_parameters():
        if name.endswith(("gate.weight", "router.weight", "router.bias", "sinks", "_bias")):
            torch.nn.init.normal_(parameter, std=0.5)
    torch.nn.Module.to(model, dtype)
    return model.eval()


@pytest.fixture
def build_model() -> Callable[..., PreTrainedModel]:
    return build


@pytest.fixture(params=sorted(CONFIGS))
def model_type(request: pytest.FixtureRequest) -> str:
    return request.param
