"""LoRA on the experts of a small random base: a whole engine host, beside transformers and beside stock vLLM."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.fixtures_engine import ALL_TARGETS, MAX_RANK, START_TIMEOUT_S, RunningEngine, base_folder, write_adapter

from openmint.bases import read_base_folder
from openmint.embedded.process import free_port
from openmint.engines.protocol import VERDICT_HEADER
from openmint.settings import CommonSettings
from openmint_engine_host.plugin import die_with_parent

pytestmark = pytest.mark.engine

GREATEST_DIFFERENCE = 1e-3
"""Greatest difference of a logprob in nats, float32 against float32."""

PROMPTS = ([1, 504, 2365, 6354, 16438, 4461, 690, 4480], [1, 28, 330, 9999, 40000, 7, 512, 77, 23, 5])


@pytest.fixture(scope="module")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from openmint_engine_host.tiny_moe_base import write_tiny_moe_base

    folder = tmp_path_factory.mktemp("bases") / "moe-2x8"
    write_tiny_moe_base(
        folder, layers=2, experts=8, hidden=128, intermediate=64, seed=0, tokenizer_from=base_folder(), dtype="float32"
    )
    return folder


@pytest.fixture(scope="module")
def starting_engine(
    small_base: Path, tmp_path_factory: pytest.TempPathFactory, nats_settings: CommonSettings
) -> Iterator[RunningEngine]:
    facts = read_base_folder(small_base)
    engine = RunningEngine(
        "experts", "float32", "0", tmp_path_factory.mktemp("experts"), free_port(), facts, nats_settings
    )
    engine.start(OPENMINT_BASE_FOLDER=str(small_base), OPENMINT_POOLS="experts")
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def stock_url(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Stock vLLM with the kernel repair alone: its address, and the folder in which it finds adapters by name."""
    folder, port = tmp_path_factory.mktemp("adapters"), free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENMINT_")}
    environment = kept | {
        "OPENMINT_PLUGIN_ONLY_REPAIR": "1",
        "VLLM_PLUGINS": "openmint,lora_filesystem_resolver",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_LORA_RESOLVER_CACHE_DIR": str(folder),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "1",
        "OMP_NUM_THREADS": "1",
    }
    # The resolver takes an adapter for this base when its config names it as the command line does.
    arguments = ["--model", small_base.name, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    arguments += ["--max-model-len", "512", "--max-num-seqs", "8", "--enforce-eager", "--enable-lora"]
    arguments += ["--max-loras", "4", "--max-cpu-loras", "4", "--max-lora-rank", str(MAX_RANK)]
    arguments += ["--lora-target-modules", *ALL_TARGETS, "experts"]
    with (folder.parent / "stock.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments],
            cwd=small_base.parent,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    yield f"http://127.0.0.1:{port}", folder
    os.killpg(server.pid, signal.SIGTERM)
    server.wait(60)


@pytest.fixture
async def engine(starting_engine: RunningEngine) -> AsyncIterator[RunningEngine]:
    await starting_engine.until_ready()
    await starting_engine.clear()
    yield starting_engine


async def test_adapters_on_experts_answer_as_weights_merged_by_hand_do(engine: RunningEngine, small_base: Path):
    digests = [
        await engine.publish(rank=MAX_RANK, targets=ALL_TARGETS, strength=0.05),
        await engine.publish(rank=3, targets=("gate_proj", "down_proj"), strength=0.1),
    ]
    names = await engine.attach(*digests)
    wanted = {engine.base.name: merged_logprobs(small_base, None)}
    for digest, name in zip(digests, names, strict=True):
        wanted[name] = merged_logprobs(small_base, engine.adapter_folder(digest))
    async with engine.http() as http:
        found = {name: [await prompt_logprobs(http, name, ids) for ids in PROMPTS] for name in wanted}
    for name in wanted:
        assert greatest_difference(found[name], wanted[name]) <= GREATEST_DIFFERENCE
    base, one, other = found.values()
    assert min(greatest_difference(*pair) for pair in ((base, one), (base, other), (one, other))) > 0.1


async def test_rows_of_the_base_beside_adapters_are_those_of_the_base_alone(engine: RunningEngine):
    names = await engine.attach(
        *[await engine.publish(rank=MAX_RANK, targets=ALL_TARGETS, strength=0.2) for _ in range(2)]
    )
    models = [engine.base.name, names[0], engine.base.name, names[1], names[0], engine.base.name]
    async with engine.http() as http:
        alone = {model: await sampled_logprobs(http, model) for model in {*models}}
        beside = await asyncio.gather(*(sampled_logprobs(http, model) for model in models))
    for model, logprobs in zip(models, beside, strict=True):
        assert greatest_difference([logprobs], [alone[model]]) <= 1e-4


async def test_a_removed_adapter_is_gone_and_comes_back_the_same(engine: RunningEngine):
    digest = await engine.publish(rank=MAX_RANK, targets=ALL_TARGETS)
    (name,) = await engine.attach(digest)
    async with engine.http() as http:
        before = await sampled_logprobs(http, name)
        assert await engine.engine.remove(engine.stamp(), name, 30)
        answer = await http.post("/v1/completions", json={"model": name, "prompt": PROMPTS[0], "max_tokens": 1})
        assert (answer.status_code, answer.headers[VERDICT_HEADER]) == (503, "absent")
        # Another one in the slot that became free: what it leaves alone must not be the first one's.
        (other,) = await engine.attach(await engine.publish(targets=("q_proj",)))
        assert await engine.engine.remove(engine.stamp(), other, 30)
        (name,) = await engine.attach(digest)
        assert await sampled_logprobs(http, name) == before


async def test_stock_vllm_with_the_same_kernels_answers_the_same(
    engine: RunningEngine, stock_url: tuple[str, Path], tmp_path: Path
):
    url, folder = stock_url
    write_adapter(tmp_path / "tone", engine.base, 4711, rank=MAX_RANK, targets=ALL_TARGETS)
    write_adapter(folder / "tone", engine.base, 4711, rank=MAX_RANK, targets=ALL_TARGETS)
    (name,) = await engine.attach(await engine.publish_folder(tmp_path / "tone"))
    async with engine.http() as ours, httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as stock:
        await until_healthy(stock)
        for one, other in ((engine.base.name, engine.base.name), (name, "tone")):
            left = [await prompt_logprobs(ours, one, ids) for ids in PROMPTS]
            right = [await prompt_logprobs(stock, other, ids) for ids in PROMPTS]
            assert greatest_difference(left, right) <= 1e-5


def merged_logprobs(base: Path, adapter: Path | None) -> list[list[float]]:
    """Logprobs of the prompts from transformers, with the adapter added to the weights."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    weights = dict(model.named_parameters())
    if adapter is not None:
        config = json.loads((adapter / "adapter_config.json").read_text())
        tensors = load_file(adapter / "adapter_model.safetensors")
        for name in tensors:
            module, _, half = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
            if half != "A":
                continue
            delta = tensors[name.replace(".lora_A.", ".lora_B.")] @ tensors[name] * config["lora_alpha"] / config["r"]
            with torch.no_grad():
                weight_of(weights, module).add_(delta)
    result: list[list[float]] = []
    for ids in PROMPTS:
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
        result.append([float(logprobs[position, token]) for position, token in enumerate(ids[1:])])
    return result


def weight_of(weights: dict[str, Any], module: str) -> Any:
    """The weight of a module; of one expert a part of what transformers keeps in one tensor, gate before up."""
    if ".experts." not in module:
        return weights[f"{module}.weight"]
    layer, _, rest = module.partition(".experts.")
    expert, projection = rest.split(".")
    if projection == "down_proj":
        return weights[f"{layer}.experts.down_proj"][int(expert)]
    gate, up = weights[f"{layer}.experts.gate_up_proj"][int(expert)].chunk(2)
    return gate if projection == "gate_proj" else up


async def prompt_logprobs(http: httpx.AsyncClient, model: str, ids: list[int]) -> list[float]:
    body: dict[str, Any] = {"model": model, "prompt": ids, "max_tokens": 1, "prompt_logprobs": 0, "temperature": 0}
    answer = await http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    entries = answer.json()["choices"][0]["prompt_logprobs"][1:]
    return [entry[str(token)]["logprob"] for entry, token in zip(entries, ids[1:], strict=True)]


async def sampled_logprobs(http: httpx.AsyncClient, model: str) -> list[float]:
    body = {"model": model, "prompt": PROMPTS[0], "max_tokens": 8, "temperature": 0, "logprobs": 0, "ignore_eos": True}
    answer = await http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["logprobs"]["token_logprobs"]


def greatest_difference(left: list[list[float]], right: list[list[float]]) -> float:
    return max(abs(a - b) for one, other in zip(left, right, strict=True) for a, b in zip(one, other, strict=True))


async def until_healthy(http: httpx.AsyncClient) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if (await http.get("/health")).status_code == 200:
                return
        except httpx.TransportError:
            await asyncio.sleep(0.5)
    raise AssertionError("stock vLLM is not ready")
