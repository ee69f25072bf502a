"""Reinforcement learning as jobs: sampled on an engine that serves what the store holds, and in the trainer itself."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import torch
from aiohttp import web
from peft import PeftModel
from transformers import AutoModelForCausalLM

from openmint.adapters.revision_files import fetch_revision_folder
from openmint.adapters.signing import SigningKey, TrustedKeys, keys_folder
from openmint.adapters.store import Store
from openmint.bases import BaseFacts
from openmint.bus.connection import Bus
from openmint.catalog.rows import JobState
from openmint.endings import end
from openmint.engines.loads import LoadWaiter
from openmint.engines.residency import ResidencyView
from openmint.engines.resident_list import HostLists
from openmint.events import AdapterResident, EngineHeartbeat, EngineJoined, JobProgressed, LoadRequested
from openmint.settings import CommonSettings
from openmint_trainer.executor import Executor
from openmint_trainer.loop import TrainerLoop
from openmint_trainer.mixed_training import MixedTraining
from openmint_trainer.rollouts import Samplers
from openmint_trainer.rollouts.engines import EngineSamplers, EngineSettings
from openmint_trainer.rollouts.ephemeral import EphemeralRevisions
from openmint_trainer.training_thread import TrainingThread

Running = Callable[..., AbstractAsyncContextManager[TrainerLoop]]

ROWS = [{"prompt": text, "answer": ""} for text in ("a+b", "max", "go")]
GRPO: dict[str, Any] = {
    "recipe": "grpo",
    "reward": {"name": "format", "pattern": r"[a-m].*"},
    "rollout": {"group_size": 4, "max_new_tokens": 2, "max_staleness": 1},
    "training": {"steps": 4, "batch_rows": 2, "checkpoint_every_steps": 3},
}


@dataclass
class Engine:
    """Engine, host and scheduler in one: loads what is asked for out of the store and samples by stock PEFT."""

    bus: Bus
    facts: BaseFacts
    base_folder: Path
    store: Store
    trusted: TrustedKeys
    keeps_the_first: bool = False
    """The fault: whatever is loaded, the first revision's weights answer, and say so."""
    boot_id: UUID = field(default_factory=uuid4)
    url: str = ""
    served: dict[str, tuple[str, Any]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    classes: set[str] = field(default_factory=set)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    async def on_load(self, message: Any) -> None:
        request = LoadRequested.model_validate_json(message.data)
        self.classes.add(request.load_class)
        if request.digest in self.names:
            return
        name = self.names[request.digest] = f"{request.policy}#{len(self.names)}"
        with tempfile.TemporaryDirectory() as folder:
            await fetch_revision_folder(self.store, request.digest, Path(folder), self.trusted)
            base = AutoModelForCausalLM.from_pretrained(self.base_folder)
            self.served[name] = request.digest, PeftModel.from_pretrained(base, folder).eval()
        if self.keeps_the_first:
            self.served[name] = next(iter(self.served.values()))
        await self.bus.publish_soft(
            AdapterResident(
                base=self.facts.name, engine="serve-1", boot_id=self.boot_id, sequence=len(self.names),
                digest=request.digest, adapter_name=name, url=self.url, pools=["serve"],
            )
        )  # fmt: skip

    async def beat(self) -> None:
        common: dict[str, Any] = {
            "base": self.facts.name, "base_digest": self.facts.digest, "engine": "serve-1", "boot_id": self.boot_id,
            "pools": ["serve"], "url": self.url, "control_url": "http://127.0.0.1:9",
        }  # fmt: skip
        await self.bus.publish_soft(EngineJoined(**common, build="test"))
        while True:
            # The list of residents is told by AdapterResident alone: its version never moves.
            beat = EngineHeartbeat(**common, capacity=8, max_rank=8, list_version=0, list_hash="")
            await self.bus.publish_core(beat.subject(), beat)
            await asyncio.sleep(0.3)

    async def complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        digest, model = self.served[body["model"]]
        choices = [self._choice(model, body, index) for index in range(body["n"])]
        headers = {"x-openmint-boot": str(self.boot_id), "x-openmint-revision": digest}
        return web.json_response({"choices": choices}, headers=headers)

    def _choice(self, model: Any, body: dict[str, Any], index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(body["seed"] + index)
        ids, token_ids, logprobs = list(body["prompt"]), [], []
        for _ in range(body["max_tokens"]):
            with torch.inference_mode():
                table = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].float(), -1)
            token = int(torch.multinomial(table.exp(), 1, generator=generator))
            ids.append(token)
            token_ids.append(token)
            logprobs.append(float(table[token]))
        return {
            "index": index,
            "token_ids": token_ids,
            "logprobs": {"token_logprobs": logprobs},
            "finish_reason": "length",
        }


@asynccontextmanager
async def engine_of(
    bus: Bus, facts: BaseFacts, base_folder: Path, store: Store, settings: CommonSettings, **faults: Any
) -> AsyncGenerator[tuple[Engine, Callable[[Executor, MixedTraining, TrainingThread], Samplers]]]:
    key = SigningKey.load_or_create(keys_folder(settings.state_dir))
    engine = Engine(bus, facts, base_folder, store, TrustedKeys.open(settings.state_dir), **faults)
    app = web.Application()
    app.router.add_post("/v1/completions", engine.complete)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    engine.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    subscription = await bus.nc.subscribe(LoadRequested.subject_filter(), cb=engine.on_load)
    beating = asyncio.create_task(engine.beat())
    view = ResidencyView(HostLists(""))
    await view.start(bus)
    waiter = LoadWaiter(bus, view)
    await waiter.start()
    try:
        async with httpx.AsyncClient(timeout=30) as http:

            def samplers(executor: Executor, training: MixedTraining, thread: TrainingThread) -> Samplers:
                folder = Path(tempfile.mkdtemp(dir=settings.state_dir))
                revisions = EphemeralRevisions(store, key, facts, "float32")
                wanted = EngineSettings(base=facts.name, load_deadline_s=20)
                return EngineSamplers(wanted, waiter, http, revisions, executor, training, thread, folder)

            yield engine, samplers
    finally:
        await waiter.close()
        await view.close()
        await end(beating)
        await subscription.unsubscribe()
        await runner.cleanup()


@pytest.mark.slow
async def test_a_job_learns_from_samples_of_an_engine_and_its_ephemeral_revisions_are_gone_afterwards(
    requests: Any, running_trainer: Running, bus: Bus, base_facts: BaseFacts, tiny_base: Path, store: Store,
    settings: CommonSettings, soft_facts: Any,
) -> None:  # fmt: skip
    async with engine_of(bus, base_facts, tiny_base, store, settings) as (engine, samplers):
        job = await requests.train(rows=ROWS, **GRPO)
        async with running_trainer(engines=samplers):
            ended = await requests.ended(job.job_id)
        assert (ended.state, ended.step) == (JobState.COMPLETED, 4), ended.cause
        assert engine.classes == {"rollout"}
        # Steps 1 and 2 are sampled from the first weights, 3 from those of step 1, 4 from the checkpoint at step 3.
        assert len(engine.names) == 3
        assert len(engine.bodies) == 8
        assert {body["n"] for body in engine.bodies} == {4}
    facts = [fact for fact in soft_facts.facts if isinstance(fact, JobProgressed)]
    assert facts[-1].reward is not None
    assert facts[-1].staleness == 0
    gaps = [fact.gap for fact in facts if fact.gap is not None and fact.staleness == 0]
    assert all(gap < 1e-3 for gap in gaps)
    assert await store.list("revisions/") == []


async def test_an_engine_that_keeps_answering_with_an_old_revision_fails_the_job_at_once(
    requests: Any, running_trainer: Running, bus: Bus, base_facts: BaseFacts, tiny_base: Path, store: Store,
    settings: CommonSettings,
) -> None:  # fmt: skip
    async with engine_of(bus, base_facts, tiny_base, store, settings, keeps_the_first=True) as (engine, samplers):
        rollout = {**GRPO["rollout"], "max_staleness": 0}
        job = await requests.train(rows=ROWS, **{**GRPO, "rollout": rollout})
        async with running_trainer(engines=samplers):
            ended = await requests.ended(job.job_id)
        first, second = engine.names
    assert (ended.state, ended.cause.code, ended.cause.fault) == (JobState.FAILED, "wrong_revision", "server")
    assert "rollouts of step 2" in ended.cause.detail
    assert f"was made by {first}, not by {second} as asked" in ended.cause.detail


async def test_without_an_engine_a_job_is_sampled_in_the_trainer_beside_another_recipe(
    requests: Any, running_trainer: Running, soft_facts: Any
) -> None:
    learns = await requests.train(policy="a", rows=ROWS, **GRPO)
    other = await requests.train(policy="b")
    unknown = await requests.train(policy="c", rows=ROWS, **{**GRPO, "reward": {"name": "endpoint", "entry": "x"}})
    async with running_trainer():
        assert (await requests.ended(learns.job_id)).state is JobState.COMPLETED
        assert (await requests.ended(other.job_id)).state is JobState.COMPLETED
        refused = await requests.ended(unknown.job_id)
    assert (refused.state, refused.cause.field) == (JobState.FAILED, "reward.entry")
    told = [f for f in soft_facts.facts if isinstance(f, JobProgressed) and f.job_id == learns.job_id]
    assert told[-1].reward is not None
    assert told[-1].gap is None or told[-1].gap < 1e-4
