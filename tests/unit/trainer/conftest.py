"""Tiny random bases on which exactness can be checked in milliseconds."""

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from openmint_trainer.banks import AdapterShape
from openmint_trainer.executor import Executor
from openmint_trainer.resident_base import ResidentBase, adopt_base, use_one_thread
from openmint_trainer.rows import Portion, Row

VOCABULARY = 96
ALL_TARGETS = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")

use_one_thread()


def build_model(dtype: torch.dtype = torch.float32, layers: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(7)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=512,
        initializer_range=0.08,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    torch.nn.Module.to(model, dtype)
    return model


@pytest.fixture
def make_model() -> Callable[..., LlamaForCausalLM]:
    return build_model


@pytest.fixture
def make_base() -> Callable[..., ResidentBase]:
    def make(dtype: torch.dtype = torch.float32) -> ResidentBase:
        return adopt_base(build_model(dtype), "tiny", "sha256:" + "0" * 64)

    return make


@pytest.fixture
def make_executor(make_base: Callable[..., ResidentBase]) -> Callable[..., Executor]:
    def make(dtype: torch.dtype = torch.float32, max_slots: int = 8) -> Executor:
        return Executor(make_base(dtype), max_slots)

    return make


@pytest.fixture
def make_shape() -> Callable[..., AdapterShape]:
    def make(rank: int = 8, alpha: float = 16.0, targets: tuple[str, ...] = ALL_TARGETS) -> AdapterShape:
        return AdapterShape(rank, alpha, targets)

    return make


def build_row(length: int, seed: int, trained: int | None = None) -> Row:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (length + 1,), generator=generator)
    weights = torch.zeros(length)
    weights[-(trained or length) :] = 1.0
    return Row(ids[:-1], ids[1:], weights)


@pytest.fixture
def make_row() -> Callable[..., Row]:
    return build_row


@pytest.fixture
def make_portion() -> Callable[..., Portion]:
    def make(lengths: tuple[int, ...] = (7, 33), seed: int = 0) -> Portion:
        return Portion(tuple(build_row(length, seed * 1000 + i) for i, length in enumerate(lengths)))

    return make
