"""A small mixture-of-experts base with random weights and a real tokenizer, for tests and loads.

Everything but its answers is real. Experts are stored one by one, as the published Qwen3-MoE bases store them.
"""

import argparse
from pathlib import Path
from typing import Any

from openmint_engine_host.tiny_base import HEAD_WIDTH, INITIALIZER_RANGE, save_base

HIDDEN = 512
INTERMEDIATE = 192


def write_tiny_moe_base(
    folder: Path,
    *,
    layers: int = 8,
    experts: int = 64,
    hidden: int = HIDDEN,
    intermediate: int = INTERMEDIATE,
    seed: int = 0,
    tokenizer_from: Path,
    dtype: str = "bfloat16",
) -> None:
    """Write a random Qwen3-MoE; its name is the folder's. A folder that is there already is replaced at the end.

    Each token goes to one expert in 16, as in Qwen3-MoE, and to two at least. `hidden` is a multiple of 64;
    `tokenizer_from` is an HF folder whose tokenizer, chat template and token ids are taken over. The numbers of
    `dtype` are those of the seed in every dtype, rounded.
    """
    import torch
    from transformers import AutoConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM

    source = AutoConfig.from_pretrained(tokenizer_from)
    heads = hidden // HEAD_WIDTH
    config = Qwen3MoeConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 2,
        moe_intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_experts=experts,
        num_experts_per_tok=max(2, experts // 16),
        norm_topk_prob=True,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        vocab_size=source.vocab_size,
        max_position_embeddings=2048,
        bos_token_id=source.bos_token_id,
        eos_token_id=source.eos_token_id,
        initializer_range=INITIALIZER_RANGE,
        tie_word_embeddings=True,
        dtype=dtype,
    )
    random = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        model: Any = Qwen3MoeForCausalLM(config)
    finally:
        torch.random.set_rng_state(random)
    model.to(getattr(torch, dtype))
    save_base(model, tokenizer_from, folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write a small random mixture-of-experts base model")
    parser.add_argument("--tokenizer-from", type=Path, required=True, help="HF folder to copy the tokenizer from")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; its name is the base's name")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    parser.add_argument("--intermediate", type=int, default=INTERMEDIATE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    given = parser.parse_args()
    write_tiny_moe_base(
        given.out,
        layers=given.layers,
        experts=given.experts,
        hidden=given.hidden,
        intermediate=given.intermediate,
        seed=given.seed,
        tokenizer_from=given.tokenizer_from,
        dtype=given.dtype,
    )


if __name__ == "__main__":
    main()
