"""Do the right weights answer, and nothing but them? Against stock PEFT in float32."""

import asyncio
from typing import Any

import httpx
import pytest
from tests.fixtures_engine import ALL_TARGETS, MAX_RANK, SLOTS, RunningEngine, base_folder, sign_adapter, write_adapter

from openmint.errors import BadAdapter

pytestmark = pytest.mark.engine

TEXTS = (
    "The quick brown fox jumps over the lazy dog and runs into the forest.",
    "In 1969 two people walked on the moon, and the whole world watched them do it.",
)


async def prompt_logprobs(http: httpx.AsyncClient, model: str, ids: list[int]) -> list[float]:
    body: dict[str, Any] = {"model": model, "prompt": ids, "max_tokens": 1, "prompt_logprobs": 0, "temperature": 0}
    answer = await http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    entries = answer.json()["choices"][0]["prompt_logprobs"][1:]
    return [entry[str(token)]["logprob"] for entry, token in zip(entries, ids[1:], strict=True)]


async def sampled_logprobs(http: httpx.AsyncClient, model: str, prompt: str, tokens: int = 12) -> list[float]:
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 0, "ignore_eos": True}
    while True:
        answer = await http.post("/v1/completions", json=body)
        if answer.status_code != 503:
            assert answer.status_code == 200, answer.text
            return answer.json()["choices"][0]["logprobs"]["token_logprobs"]
        await asyncio.sleep(0.05)


def greatest_difference(left: list[float], right: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(left, right, strict=True))


async def test_a_prepared_file_answers_as_stock_peft_does(fp32_engine: RunningEngine):
    """Every target at full rank, alpha / rank not 1, and two targets only: max 1e-3, mean 1e-4 nats."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    digests = [
        await fp32_engine.publish(rank=MAX_RANK, targets=ALL_TARGETS, strength=0.02),
        await fp32_engine.publish(rank=3, targets=("k_proj", "down_proj")),
    ]
    names = await fp32_engine.attach(*digests)
    tokenizer = AutoTokenizer.from_pretrained(base_folder())
    torch.set_num_threads(1)
    for digest, name in zip(digests, names, strict=True):
        model = AutoModelForCausalLM.from_pretrained(base_folder(), dtype=torch.float32)
        model = PeftModel.from_pretrained(model, str(fp32_engine.adapter_folder(digest)))
        async with fp32_engine.http() as http:
            for text in TEXTS:
                ids: list[int] = tokenizer(text)["input_ids"]
                with torch.no_grad():
                    logprobs_TV = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
                wanted = [float(logprobs_TV[position, token]) for position, token in enumerate(ids[1:])]
                found = await prompt_logprobs(http, name, ids)
                base = await prompt_logprobs(http, fp32_engine.base.name, ids)
                differences = [abs(a - b) for a, b in zip(found, wanted, strict=True)]
                assert max(differences) <= 1e-3
                assert sum(differences) / len(differences) <= 1e-4
                assert greatest_difference(base, wanted) > 0.1, "the adapter has an effect"


async def test_base_rows_beside_a_strong_adapter_answer_as_base_rows_beside_base_rows(fp32_engine: RunningEngine):
    """All slots full and a strong adapter in the last one: stock CPU kernels give base rows its weights."""
    weak = [await fp32_engine.publish() for _ in range(SLOTS - 1)]
    strong = await fp32_engine.publish(rank=MAX_RANK, targets=ALL_TARGETS, strength=0.5)
    names = await fp32_engine.attach(*weak, strong)
    assert (await fp32_engine.engine.state()).slot_adapters == tuple(names)
    base = fp32_engine.base.name
    async with fp32_engine.http() as http:
        alone = [await sampled_logprobs(http, base, text) for text in TEXTS]
        models = [base, names[-1], base, names[0]]
        mixed = await asyncio.gather(*(sampled_logprobs(http, m, TEXTS[i % 2]) for i, m in enumerate(models * 2)))
    for index in (0, 2, 4, 6):
        assert greatest_difference(mixed[index], alone[index % 2]) <= 1e-3
    assert greatest_difference(mixed[1], alone[1]) > 0.5, "the strong adapter is strong"


async def test_many_adapters_in_one_batch_each_keep_their_own_weights(fp32_engine: RunningEngine):
    names = await fp32_engine.attach(*[await fp32_engine.publish() for _ in range(SLOTS)])
    async with fp32_engine.http() as http:
        alone = [await sampled_logprobs(http, name, TEXTS[0]) for name in names]
        together = await asyncio.gather(*(sampled_logprobs(http, name, TEXTS[0]) for name in names))
    for index in range(SLOTS):
        assert greatest_difference(alone[index], together[index]) <= 1e-3
        for other in range(index):
            assert greatest_difference(alone[index], alone[other]) > 0.01


async def test_an_adapter_beyond_the_slots_answers_right_after_it_has_lost_its_slot(fp32_engine: RunningEngine):
    names = await fp32_engine.attach(*[await fp32_engine.publish() for _ in range(SLOTS + 2)])
    async with fp32_engine.http() as http:
        first = [await sampled_logprobs(http, name, TEXTS[1], 4) for name in names]
        second = [await sampled_logprobs(http, name, TEXTS[1], 4) for name in names]
    for before, after in zip(first, second, strict=True):
        assert greatest_difference(before, after) <= 1e-3


async def test_a_new_load_of_a_revision_does_not_see_what_a_former_one_cached(fp32_engine: RunningEngine):
    digest = await fp32_engine.publish()
    results: list[list[float]] = []
    for _ in range(2):
        (name,) = await fp32_engine.attach(digest)
        async with fp32_engine.http() as http:
            results.append(await sampled_logprobs(http, name, TEXTS[0] * 4))
        assert await fp32_engine.engine.remove(fp32_engine.stamp(), name, 10)
    assert results[0] == pytest.approx(results[1], abs=1e-3)


async def test_a_probe_answers_one_number_for_an_adapter_and_for_the_base(fp32_engine: RunningEngine):
    (name,) = await fp32_engine.attach(await fp32_engine.publish())
    assert await fp32_engine.engine.probe(name) <= 0
    assert await fp32_engine.engine.probe("") <= 0


@pytest.mark.parametrize("damage", ["one bit of the weights", "signature of another", "no signature", "rank above"])
async def test_a_revision_that_is_not_what_it_says_never_reaches_the_engine(fp32_engine: RunningEngine, damage: str):
    digest = await fp32_engine.publish(rank=16 if damage == "rank above" else 4)
    stored = fp32_engine.state_dir / "store" / "revisions" / digest.removeprefix("sha256:")
    if damage == "one bit of the weights":
        content = bytearray((stored / "adapter_model.safetensors").read_bytes())
        content[-1] ^= 1
        (stored / "adapter_model.safetensors").write_bytes(content)
    elif damage == "signature of another":
        other = await fp32_engine.publish()
        signature = (stored.parent / other.removeprefix("sha256:") / "manifest.sig").read_bytes()
        (stored / "manifest.sig").write_bytes(signature)
    elif damage == "no signature":
        (stored / "manifest.sig").write_bytes(b"{}")
    with pytest.raises(BadAdapter):
        await fp32_engine.engine.stage(fp32_engine.stamp(), digest)
    async with fp32_engine.http() as http:
        assert await sampled_logprobs(http, fp32_engine.base.name, "a", 1)


async def test_an_adapter_with_a_number_that_is_not_finite_is_refused_although_it_is_signed(
    fp32_engine: RunningEngine,
):
    """Signed by a trusted key: the engine host checks again, because one NaN would poison every tenant."""
    from safetensors.numpy import load_file, save_file

    from openmint.adapters.manifest import Manifest
    from openmint.adapters.revision_files import put_revision_folder
    from openmint.adapters.signing import SigningKey, keys_folder

    folder = fp32_engine.state_dir / "adapters" / "poisoned"
    write_adapter(folder, fp32_engine.base, seed=fp32_engine.fresh_seed())
    key = SigningKey.load_or_create(keys_folder(fp32_engine.state_dir))
    sign_adapter(folder, fp32_engine.base, key)
    good = Manifest.parse((folder / "manifest.json").read_bytes())
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = sorted(tensors)[0]
    tensors[name][0, 0] = float("nan")
    save_file(tensors, weights)
    import hashlib

    files = {**good.files, weights.name: good.files[weights.name].model_copy(update={"sha256": _sha256(weights)})}
    tensor = good.tensors[name].model_copy(update={"sha256": hashlib.sha256(tensors[name].tobytes()).hexdigest()})
    raw = good.model_copy(update={"files": files, "tensors": {**good.tensors, name: tensor}}).canonical_bytes()
    (folder / "manifest.json").write_bytes(raw)
    (folder / "manifest.sig").write_bytes(key.sign(raw))
    digest = Manifest.parse(raw).digest()
    await put_revision_folder(fp32_engine.store, digest, folder)
    with pytest.raises(BadAdapter, match="finite"):
        await fp32_engine.engine.stage(fp32_engine.stamp(), digest)


def _sha256(path: Any) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()
