"""The reference child against stock PEFT used directly, on a tiny random Llama."""

from pathlib import Path

import pytest

from openmint.errors import BadAdapter, BadDataset
from openmint_evaluator.reference_client import ReferenceChild, ReferenceFailed, ReferencePool

SEQUENCES = [[5, 9, 300, 7, 41, 41, 12], [8, 8, 9]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def adapter_folder(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random rank 4 adapter on every attention and MLP linear, in bf16, as an export writes it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.bfloat16)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(base, config, autocast_adapter_dtype=False)
    torch.manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def expected(base_folder: Path, adapter_folder: Path) -> dict[str, list[float]]:
    """What stock PEFT in fp32 says when used by hand, padding and all left out."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def logprobs(model: torch.nn.Module) -> list[float]:
        found: list[float] = []
        with torch.no_grad():
            for ids in SEQUENCES:
                table = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1)
                found += [float(table[i, token]) for i, token in enumerate(ids[1:])]
        return found

    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    off = logprobs(base)
    adapted = PeftModel.from_pretrained(base, str(adapter_folder))
    on = logprobs(adapted)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data /= 2
    return {"off": off, "on": on, "half": logprobs(adapted)}


async def test_child_says_what_stock_peft_says(
    child: ReferenceChild, adapter_folder: Path, expected: dict[str, list[float]]
) -> None:
    on, half = await child.logprobs(adapter_folder, SEQUENCES, [1.0, 0.5])
    (off,) = await child.logprobs(None, SEQUENCES)
    assert on == pytest.approx(expected["on"], abs=1e-5)
    assert half == pytest.approx(expected["half"], abs=1e-5)
    assert off == pytest.approx(expected["off"], abs=1e-5)
    effect = sum(abs(a - b) for a, b in zip(on, off, strict=True)) / len(on)
    assert effect > 0.01, "the adapter acts, so equality above says something"


async def test_base_is_bit_equal_after_an_adapter_was_on(child: ReferenceChild, adapter_folder: Path) -> None:
    before = await child.logprobs(None, SEQUENCES)
    await child.logprobs(adapter_folder, SEQUENCES)
    assert await child.logprobs(None, SEQUENCES) == before


async def test_folder_that_peft_refuses_is_named_and_the_child_lives(child: ReferenceChild, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    with pytest.raises(BadAdapter, match="stock PEFT can't load"):
        await child.logprobs(tmp_path, SEQUENCES)
    assert len((await child.logprobs(None, SEQUENCES))[0]) == 8


async def test_rows_of_both_kinds_are_rendered_and_named(child: ReferenceChild) -> None:
    plain = await child.encode_rows(
        [{"prompt": "Review: fine\nVerdict:", "completion": " good"}], [" good", " bad"], max_tokens=100
    )
    assert plain.rendering == "plain"
    assert plain.rows[0].label == 0
    assert plain.rows[0].completion_ids == plain.labels[0]
    chat = await child.encode_rows(
        [{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]}],
        [],
        max_tokens=100,
    )
    assert chat.rendering.startswith("chat template sha256:")
    rendered = (await child.encode_texts(["<|user|>Hello\n<|assistant|>"]))[0]
    assert list(chat.rows[0].prompt_ids) == rendered


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a"}, "held-out row 2 has neither"),
        ({"prompt": "a", "completion": " worse"}, "none of the labels"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "not an assistant's"),
    ],
)
async def test_row_that_cannot_be_read_is_named(child: ReferenceChild, row: dict[str, object], said: str) -> None:
    good = {"prompt": "a", "completion": " good"}
    with pytest.raises(BadDataset, match=said):
        await child.encode_rows([good, row], [" good", " bad"], max_tokens=100)  # pyright: ignore[reportArgumentType]


async def test_long_rows_are_left_out_and_counted(child: ReferenceChild) -> None:
    rows = [{"prompt": "a", "completion": " good"}, {"prompt": "a" * 500, "completion": " good"}]
    encoded = await child.encode_rows(rows, [], max_tokens=50)  # pyright: ignore[reportArgumentType]
    assert (len(encoded.rows), encoded.left_out) == (1, 1)


async def test_description_names_the_software(child: ReferenceChild) -> None:
    assert "stock PEFT" in await child.describe()


async def test_child_that_cannot_start_is_a_failure_to_try_again(tmp_path: Path) -> None:
    lost = ReferenceChild(tmp_path / "nothing", timeout_s=60)
    with pytest.raises(ReferenceFailed, match="ended with code"):
        await lost.describe()


async def test_idle_child_ends_and_the_next_call_starts_another(base_folder: Path) -> None:
    pool = ReferencePool(timeout_s=120, idle_s=0.0)
    child = await pool.child(base_folder)
    await child.encode_texts(["a"])
    first = child._process
    await pool.end_when_idle()
    assert first is not None and first.returncode is not None
    assert await (await pool.child(base_folder)).encode_texts(["a"])
    await pool.close()
