"""A tiny base model with random weights and a real tokenizer: for tests and chaos runs that need no language skill.

Everything but its answers is real: vLLM serves it, the trainer trains on it, stock PEFT loads its adapters.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")

INITIALIZER_RANGE = 0.08
"""With the usual 0.02 the logits are nearly uniform and every adapter looks like a no-op."""

HEAD_WIDTH = 32
"""The smallest that vLLM's CPU attention has a kernel for."""


def make_tiny_base(tokenizer_from: Path, out: Path, layers: int = 2, hidden: int = 64, seed: int = 0) -> None:
    """Write a random Llama of `layers` layers and width `hidden` (a multiple of 32) beside a copied tokenizer.

    Source files: an HF folder whose tokenizer, chat template and token ids are taken over.
    """
    import torch
    from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

    source = AutoConfig.from_pretrained(tokenizer_from)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // HEAD_WIDTH,
        num_key_value_heads=max(1, hidden // HEAD_WIDTH // 2),
        head_dim=HEAD_WIDTH,
        vocab_size=source.vocab_size,
        max_position_embeddings=2048,
        bos_token_id=source.bos_token_id,
        eos_token_id=source.eos_token_id,
        initializer_range=INITIALIZER_RANGE,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16)
    save_base(model, tokenizer_from, out)


def save_base(model: Any, tokenizer_from: Path, out: Path) -> None:
    """Save a transformers model beside a copied tokenizer; a folder that is there already is replaced at the end."""
    temporary = out.with_name(out.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    for name in TOKENIZER_FILES:
        if (tokenizer_from / name).exists():
            shutil.copyfile(tokenizer_from / name, temporary / name)
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write a tiny random base model")
    parser.add_argument("--tokenizer-from", type=Path, required=True, help="HF folder to copy the tokenizer from")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; its name is the base's name")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_tiny_base(arguments.tokenizer_from, arguments.out, arguments.layers, arguments.hidden, arguments.seed)


if __name__ == "__main__":
    main()
