"""The exported folder in stock PEFT: it loads without a word, and computes W x + alpha / r B A x."""

import asyncio
import hashlib
import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from openmint.adapters.inspection import Inspector
from openmint.adapters.signing import SigningKey
from openmint.bases import BaseFacts, read_base_folder
from openmint_exporter.export import export_checkpoint

torch.set_num_threads(1)

RANK, ALPHA, TARGETS = 4, 6.0, ["down_proj", "q_proj", "v_proj"]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama of two layers whose modules have unlike sizes."""
    folder = tmp_path_factory.mktemp("bases") / "tiny"
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        max_position_embeddings=32,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def base(base_folder: Path) -> BaseFacts:
    return read_base_folder(base_folder)


@pytest.fixture
def lora(base: BaseFacts) -> dict[str, torch.Tensor]:
    """A random adapter that acts: `<module>.lora_A` and `.lora_B`."""
    generator = torch.Generator().manual_seed(2)
    tensors: dict[str, torch.Tensor] = {}
    for module, (out_size, in_size) in base.modules.items():
        if module.rpartition(".")[2] in TARGETS:
            tensors[f"{module}.lora_A"] = torch.randn(RANK, in_size, generator=generator) * 0.3
            tensors[f"{module}.lora_B"] = torch.randn(out_size, RANK, generator=generator) * 0.3
    return tensors


async def exported(lora: dict[str, torch.Tensor], base: BaseFacts, dtype: str, folder: Path) -> Path:
    """Through the real export, from a checkpoint file."""
    await asyncio.to_thread(folder.mkdir, parents=True)
    meta = {
        "format": 1,
        "base": base.name,
        "base_digest": base.digest,
        "rank": RANK,
        "alpha": ALPHA,
        "targets": TARGETS,
        "step": 1,
    }
    file = folder / "checkpoint.safetensors"
    tensors = {f"adapter.{name}": tensor for name, tensor in lora.items()}
    moments = {f"adam_m.{name}": torch.ones_like(tensor) for name, tensor in lora.items()}
    save_file(tensors | moments, file, metadata={"openmint": json.dumps(meta)})
    await asyncio.to_thread((folder / "out").mkdir)
    key = SigningKey.load_or_create(folder / "keys")
    sha256 = hashlib.sha256(file.read_bytes()).digest()
    async with Inspector() as inspector:
        return (await export_checkpoint(file, sha256, base, dtype, key, inspector, folder / "out")).path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
async def test_numbers_are_those_that_torch_would_have_written(dtype, lora, base, tmp_path):
    folder = await exported(lora, base, dtype, tmp_path / "x")
    written = load_file(folder / "adapter_model.safetensors")
    assert len(written) == len(lora)
    for name, tensor in lora.items():
        assert torch.equal(written[f"base_model.model.{name}.weight"], tensor.to(getattr(torch, dtype)))


async def test_stock_peft_computes_what_the_formula_says(lora, base, base_folder, tmp_path):
    folder = await exported(lora, base, "float32", tmp_path / "x")
    tokens = torch.arange(1, 17).reshape(2, 8)
    model = LlamaForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    plain = model(tokens).logits
    by_hand = LlamaForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    scale = ALPHA / RANK
    with torch.no_grad():
        for module in base.modules:
            if f"{module}.lora_A" in lora:
                weight = by_hand.get_submodule(module).weight
                weight += scale * lora[f"{module}.lora_B"] @ lora[f"{module}.lora_A"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns of keys that are missing or left over
        adapted = PeftModel.from_pretrained(model, folder)
    with torch.no_grad():
        found, expected = adapted(tokens).logits, by_hand(tokens).logits
    assert torch.allclose(found, expected, atol=2e-5), (found - expected).abs().max()
    assert (found - plain).abs().max() > 0.1


@pytest.mark.slow
async def test_two_exports_are_the_same_bytes(lora, base, tmp_path):
    folders = [await exported(lora, base, "bfloat16", tmp_path / name) for name in ("one", "two")]
    for file in ("adapter_config.json", "adapter_model.safetensors", "manifest.json"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()


async def test_what_stock_peft_saves_passes_the_checks(lora, base, base_folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    from openmint.adapters.facts import AdapterLimits
    from openmint_exporter.export import export_foreign

    model = LlamaForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM")).save_pretrained(
        tmp_path / "foreign"
    )
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out").mkdir()
    limits = AdapterLimits(accepted_base_names=(str(base_folder),))
    key = SigningKey.load_or_create(tmp_path / "keys")
    async with Inspector() as inspector:
        signed = await export_foreign(
            tmp_path / "foreign", base, key, inspector, tmp_path / "scratch", tmp_path / "out", limits
        )
    assert signed.facts.targets == tuple(TARGETS) and signed.facts.rank == 4 and signed.facts.is_zero
