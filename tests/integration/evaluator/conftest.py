"""A tiny base with random weights, adapters made by stock PEFT, and an engine that the reference model itself backs."""

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from aiohttp import web

from openmint.bases import read_base_folder
from openmint.catalog import bases, checkpoints, jobs, revisions
from openmint.catalog.database import Catalog
from openmint.catalog.rows import Revision

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with a byte-level tokenizer, both made here."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from openmint_evaluator.probes import BUILT_IN

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("bases") / "tiny"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*BUILT_IN, " good bad" * 50], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        vocab_size=len(fast),
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.08,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
async def child(base_folder: Path) -> AsyncIterator[object]:
    """One warm reference child for all tests."""
    from openmint_evaluator.reference_client import ReferenceChild

    child = ReferenceChild(base_folder, timeout_s=180)
    yield child
    await child.close()


@pytest.fixture(scope="session")
def make_adapter(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a random rank 4 adapter as a PEFT folder: same seed, same adapter; `strength` scales B."""

    @functools.cache
    def make(seed: int, strength: float = 0.1, near: int | None = None) -> Path:
        """`near`: this share of another seed's weights is mixed in, which makes the two siblings."""
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        folder = tmp_path_factory.mktemp(f"adapter-{seed}")
        base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.bfloat16)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
        adapted = get_peft_model(base, config, autocast_adapter_dtype=False)
        own, other = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(near or seed)
        for name, parameter in sorted(adapted.named_parameters()):
            if "lora_" in name:
                shape, scale = parameter.shape, strength if "lora_B" in name else 0.2
                mine = torch.randn(shape, generator=own)
                theirs = torch.randn(shape, generator=other)
                value = mine if near is None else theirs + 0.25 * mine
                parameter.data.copy_((scale * value).to(parameter.dtype))
        adapted.save_pretrained(str(folder))
        return folder

    return make


@dataclass
class ServedRevision:
    """What the engine serves under one model name; a fault is a change of any of these."""

    digest: str
    folder: Path | None
    scale: float = 1.0
    says_nan: bool = False


class ReferenceEngine:
    """A real HTTP server that speaks the engine's contract and answers with Hugging Face models in one dtype."""

    KEY = "test-engine-key"
    MODELS: ClassVar[dict[tuple[Path, str, Path | None, float], Any]] = {}

    def __init__(self, base_folder: Path, dtype: str) -> None:
        self.base_folder = base_folder
        self.dtype = dtype
        self.boot_id = uuid4()
        self.url = ""
        self.served: dict[str, ServedRevision] = {"tiny": ServedRevision("base", None)}
        self.requests: list[dict[str, Any]] = []
        self.busy_answers = 0
        self.broken = False
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen on a free port."""
        app = web.Application()
        app.router.add_post("/v1/completions", self._complete)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Close the port."""
        if self._runner is not None:
            await self._runner.cleanup()

    def serve(self, model: str, digest: str, folder: Path | None, scale: float = 1.0, says_nan: bool = False) -> None:
        """Answer to a model name from now on."""
        self.served[model] = ServedRevision(digest, folder, scale, says_nan)

    async def _complete(self, request: web.Request) -> web.Response:
        import torch

        body = await request.json()
        self.requests.append(body)
        headers = {"x-openmint-boot": str(self.boot_id)}
        if request.headers.get("authorization") != f"Bearer {self.KEY}":
            return web.json_response({"error": "wrong key"}, status=401)
        if self.broken:
            return web.json_response({"error": "engine core died"}, status=500)
        if self.busy_answers > 0:
            self.busy_answers -= 1
            return web.json_response({}, status=503, headers=headers | {"x-openmint-verdict": "busy"})
        served = self.served.get(body["model"])
        if served is None or not request.headers.get("x-openmint-tenant"):
            return web.json_response({"error": f"no model {body['model']}"}, status=404)
        if served.says_nan and "prompt_logprobs" in body:
            return web.json_response({"error": {"message": "Out of range float values are not JSON"}}, status=400)
        ids = body["prompt"]
        with torch.inference_mode():
            logits = self._model(served)(torch.tensor([ids])).logits[0].float()
        table = torch.log_softmax(logits, -1)
        choice: dict[str, Any] = {"index": 0, "text": ""}
        if "prompt_logprobs" in body:
            entries: list[Any] = [None]
            entries += [{str(t): {"logprob": float(table[i, t]), "rank": 1}} for i, t in enumerate(ids[1:])]
            choice["prompt_logprobs"] = entries
        allowed = body.get("allowed_token_ids")
        last = table[-1]
        token = max(allowed, key=lambda t: float(last[t])) if allowed else int(last.argmax())
        if body.get("return_token_ids"):
            choice["token_ids"] = [token]
        await asyncio.sleep(0)
        return web.json_response({"choices": [choice]}, headers=headers | {"x-openmint-revision": served.digest})

    def _model(self, served: ServedRevision) -> Any:
        import torch
        from peft import PeftModel
        from peft.tuners.lora import LoraLayer
        from transformers import AutoModelForCausalLM

        key = (self.base_folder, self.dtype, served.folder, served.scale)
        if key not in self.MODELS:
            model = AutoModelForCausalLM.from_pretrained(self.base_folder, dtype=getattr(torch, self.dtype))
            if served.folder is not None:
                model = PeftModel.from_pretrained(model, str(served.folder), autocast_adapter_dtype=False)
                for module in model.modules():
                    if isinstance(module, LoraLayer):
                        module.set_scale("default", served.scale)
                model = model.to(getattr(torch, self.dtype))
            self.MODELS[key] = model.eval()
        return self.MODELS[key]


@pytest.fixture
async def engines(base_folder: Path) -> AsyncIterator[dict[str, ReferenceEngine]]:
    """One engine per pool: fp32 for the gate, bf16 for serving."""
    found = {
        "gate-fp32": ReferenceEngine(base_folder, "float32"),
        "serve": ReferenceEngine(base_folder, "bfloat16"),
    }
    for engine in found.values():
        await engine.start()
    yield found
    for engine in found.values():
        await engine.stop()


@pytest.fixture
async def export_revision(catalog: Catalog, base_folder: Path) -> Callable[..., Awaitable[Revision]]:
    """Takes one policy through job, checkpoint and export to a revision in state exported."""
    facts = read_base_folder(base_folder)
    async with catalog.connection() as conn:
        await bases.register_base(conn, facts.name, facts.digest, str(base_folder), facts.modules, {})

    async def export(
        digest: str, spec: dict[str, Any] | None = None, policy: str = "reviews", manifest: dict[str, Any] | None = None
    ) -> Revision:
        async with catalog.connection() as conn:
            job, _ = await jobs.accept_job(
                conn, service="gateway", tenant="acme", policy=policy, base=facts.name, spec=spec or {},
                idempotency_key=None, request_hash=os.urandom(32), request_id=str(uuid4()),
            )  # fmt: skip
            held = await jobs.claim_job(conn, facts.name, "trainer-1", 60)
            assert held is not None and held.job_id == job.job_id
            _, revision = await checkpoints.commit_checkpoint(
                conn, job.job_id, held.fence, 10, f"checkpoints/{job.job_id}", os.urandom(32), 100, True
            )
            await jobs.complete_job(conn, job.job_id, held.fence, 10, 100, 1.0)
            assert revision is not None
            claimed = await revisions.claim_export(conn, "exporter-1", 60, revision.revision_id)
            assert claimed is not None
            return await revisions.commit_export(
                conn, revision.revision_id, claimed.fence, digest, manifest or {"rank": 4}, 1000, 1.0
            )

    return export
