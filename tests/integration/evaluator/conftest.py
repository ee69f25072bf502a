"""A tiny base with random weights, adapters made by stock PEFT, and an engine that the reference model itself backs."""

import asyncio
import functools
import hashlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from aiohttp import web

from openmint.adapters.checks import check_adapter_folder
from openmint.adapters.manifest import Manifest
from openmint.adapters.revision_files import put_revision_folder
from openmint.adapters.signing import SigningKey, keys_folder
from openmint.adapters.store import Store
from openmint.bases import read_base_folder
from openmint.bus.connection import Bus
from openmint.catalog import bases, checkpoints, jobs, revisions
from openmint.catalog.database import Catalog
from openmint.catalog.rows import Revision
from openmint.events import AdapterResident, Cause, EngineHeartbeat, EngineJoined, LoadFailed, LoadRequested
from openmint.settings import CommonSettings

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


@dataclass
class Fleet:
    """Stands for scheduler and engine hosts: loads whatever is asked for, at once, and tells the bus as they do."""

    bus: Bus
    base: str
    base_digest: str
    engines: dict[str, ReferenceEngine]
    folders: dict[str, Path]
    faults: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    """(pool, digest) -> what is served in its place."""
    loaded: list[tuple[str, str]] = field(default_factory=list)
    refuses: str = ""
    _sequence: int = 0
    _residents: dict[str, dict[str, str]] = field(default_factory=dict)

    async def announce(self) -> None:
        """Each engine has joined."""
        for pool, engine in self.engines.items():
            await self.bus.publish_soft(
                EngineJoined(
                    base=self.base, base_digest=self.base_digest, engine=f"{pool}-1", boot_id=engine.boot_id,
                    pools=[pool], url=engine.url, control_url="http://127.0.0.1:9",
                    build=f"vllm 0.32.0 {engine.dtype}",
                )
            )  # fmt: skip

    async def beat(self) -> None:
        """A heartbeat of each engine every second."""
        while True:
            for pool, engine in self.engines.items():
                names = sorted(self._residents.get(pool, {}).values())
                beat = EngineHeartbeat(
                    base=self.base, base_digest=self.base_digest, engine=f"{pool}-1", boot_id=engine.boot_id,
                    pools=[pool], url=engine.url, control_url="http://127.0.0.1:9", capacity=8, max_rank=8,
                    list_version=len(names), list_hash=hashlib.sha256("\n".join(names).encode()).hexdigest()[:16],
                )  # fmt: skip
                await self.bus.publish_core(beat.subject(), beat)
            await asyncio.sleep(0.5)

    async def on_request(self, message: Any) -> None:
        """Load, or refuse."""
        request = LoadRequested.model_validate_json(message.data)
        pool, digest = request.pool, request.digest
        assert request.load_class == "evaluation"
        if self.refuses:
            cause = Cause(code="bad_adapter", detail=self.refuses)
            await self.bus.publish_soft(
                LoadFailed(tenant=request.tenant, base=request.base, pool=pool, digest=digest, cause=cause)
            )
            return
        engine, residents = self.engines[pool], self._residents.setdefault(pool, {})
        if digest not in residents:
            name = residents[digest] = f"{request.policy}@{digest[7:19]}#{len(self.loaded)}"
            self.loaded.append((pool, digest))
            engine.serve(name, digest, **{"folder": self.folders[digest], **self.faults.get((pool, digest), {})})
            self._sequence += 1
            await self.bus.publish_soft(
                AdapterResident(
                    base=self.base, engine=f"{pool}-1", boot_id=engine.boot_id, sequence=self._sequence,
                    digest=digest, adapter_name=name, url=engine.url, pools=[pool],
                )
            )  # fmt: skip


@pytest.fixture
async def fleet(bus: Bus, base_folder: Path, engines: dict[str, ReferenceEngine]) -> AsyncIterator[Fleet]:
    """Two engines on the bus, and somebody who loads."""
    facts = read_base_folder(base_folder)
    fleet = Fleet(bus, facts.name, facts.digest, engines, {})
    subscription = await bus.nc.subscribe(LoadRequested.subject_filter(), cb=fleet.on_request)
    await fleet.announce()
    beating = asyncio.create_task(fleet.beat())
    yield fleet
    beating.cancel()
    await subscription.unsubscribe()


@pytest.fixture
def publish_adapter(
    settings: CommonSettings, base_folder: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> Callable[..., Awaitable[tuple[str, Path, dict[str, Any]]]]:
    """Checks, signs and stores an adapter as the exporter does; gives digest, folder and manifest."""
    facts = read_base_folder(base_folder)
    key = SigningKey.load_or_create(keys_folder(settings.state_dir))

    async def publish(seed: int, **options: Any) -> tuple[str, Path, dict[str, Any]]:
        made, folder = make_adapter(seed, **options), tmp_path / f"export-{seed}"
        folder.mkdir()
        shutil.copyfile(made / "adapter_model.safetensors", folder / "adapter_model.safetensors")
        config = json.loads((made / "adapter_config.json").read_text())
        kept = ("peft_type", "r", "lora_alpha", "target_modules", "bias", "task_type")
        body = {name: config[name] for name in kept} | {"base_model_name_or_path": facts.name}
        (folder / "adapter_config.json").write_text(json.dumps(body))
        manifest = Manifest.of(check_adapter_folder(folder, facts), facts.digest)
        raw = manifest.canonical_bytes()
        (folder / "manifest.json").write_bytes(raw)
        (folder / "manifest.sig").write_bytes(key.sign(raw))
        await put_revision_folder(Store.open(settings.store_url), manifest.digest(), folder)
        return manifest.digest(), made, manifest.as_json()

    return publish
