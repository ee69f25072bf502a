"""A trainer of a tiny random base against a real Postgres and a real store, with tokens made in the test."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from openmint.adapters.keys import dataset_key
from openmint.adapters.store import Store
from openmint.bases import BaseFacts, read_base_folder
from openmint.catalog import bases, datasets, jobs
from openmint.catalog.database import Catalog
from openmint.catalog.rows import Job
from openmint.datasets import canonical_dataset
from openmint.events import Fact
from openmint.identifiers import digest_bytes, new_id
from openmint_trainer.executor import Executor
from openmint_trainer.loop import LoopSettings, TrainerLoop
from openmint_trainer.mixed_training import MixedTraining
from openmint_trainer.resident_base import load_base, use_one_thread
from openmint_trainer.rollouts import Samplers
from openmint_trainer.rollouts.access import RolloutAccess
from openmint_trainer.rollouts.decoding import MixedDecoder
from openmint_trainer.rollouts.in_process import InProcessSamplers
from openmint_trainer.training_thread import TrainingThread

use_one_thread()

ROWS = [{"prompt": f"{a}+{b}=", "completion": f" {a + b}"} for a in range(4) for b in range(4)]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder of 100 kB: bytes as tokens, two random layers."""
    folder = tmp_path_factory.mktemp("bases") / "tiny"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<eos>", bos_token="<bos>")
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=260,
        max_position_embeddings=512,
        initializer_range=0.08,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base_facts(tiny_base: Path) -> BaseFacts:
    return read_base_folder(tiny_base)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open((tmp_path / "store").as_uri())


@dataclass
class Requests:
    """Puts data and jobs where the gateway's intake would."""

    catalog: Catalog
    store: Store
    base: str

    async def train(self, tenant: str = "acme", policy: str = "p", rows: list[Any] = ROWS, **sections: Any) -> Job:
        canonical = canonical_dataset(rows)
        key = dataset_key(tenant, canonical.digest)
        await self.store.put_bytes(key, canonical.data)
        spec: dict[str, Any] = {
            "policy": policy,
            "base": self.base,
            "dataset": {"digest": canonical.digest},
            "training": {"steps": 6, "batch_rows": 4, "checkpoint_every_steps": 2} | sections.pop("training", {}),
            **sections,
        }
        async with self.catalog.transaction() as connection:
            await datasets.record_dataset(connection, tenant, canonical.digest, len(rows), len(canonical.data), key)
            job, _ = await jobs.accept_job(
                connection,
                service="gateway",
                tenant=tenant,
                policy=policy,
                base=self.base,
                spec=spec,
                idempotency_key=None,
                request_hash=digest_bytes(canonical.digest),
                request_id=str(new_id()),
            )
        return job

    async def job(self, job_id: UUID) -> Job:
        async with self.catalog.connection() as connection:
            return await jobs.find_job(connection, job_id)

    async def until(self, job_id: UUID, condition: Callable[[Job], bool], timeout_s: float = 60.0) -> Job:
        async with asyncio.timeout(timeout_s):
            while not condition(job := await self.job(job_id)):
                await asyncio.sleep(0.02)
            return job

    async def ended(self, job_id: UUID, timeout_s: float = 60.0) -> Job:
        return await self.until(job_id, lambda job: job.state.is_ended, timeout_s)


@pytest.fixture
async def requests(catalog: Catalog, store: Store, base_facts: BaseFacts, tiny_base: Path) -> Requests:
    async with catalog.transaction() as connection:
        await bases.register_base(
            connection, base_facts.name, base_facts.digest, str(tiny_base), dict(base_facts.modules), {}
        )
    return Requests(catalog, store, base_facts.name)


@dataclass
class SoftFacts:
    """Takes what a trainer publishes directly."""

    facts: list[Fact] = field(default_factory=list)

    async def publish_soft(self, fact: Fact) -> bool:
        self.facts.append(fact)
        return True


@pytest.fixture
def soft_facts() -> SoftFacts:
    return SoftFacts()


@pytest.fixture
def running_trainer(
    catalog: Catalog, store: Store, tiny_base: Path, base_facts: BaseFacts, soft_facts: SoftFacts, tmp_path: Path
) -> Callable[..., contextlib.AbstractAsyncContextManager[TrainerLoop]]:
    """Runs the trainer's loop inside the test; it is stopped gracefully at the end."""

    @asynccontextmanager
    async def run(
        owner: str = "one",
        slots: int = 4,
        lease_s: float = 20.0,
        drain_s: float = 20.0,
        bank_bytes: int = 4 << 30,
        engines: Callable[[Executor, MixedTraining, TrainingThread], Samplers] | None = None,
    ) -> AsyncGenerator[TrainerLoop]:
        base = load_base(tiny_base, base_facts.name, base_facts.digest, "float32")
        executor, thread = Executor(base, slots, bank_bytes), TrainingThread()
        training = MixedTraining(executor, budget_tokens=256)
        tokenizer = AutoTokenizer.from_pretrained(tiny_base)
        in_process = InProcessSamplers(MixedDecoder(base, tokenizer.eos_token_id, 256), training, thread)
        access = RolloutAccess(
            in_process, engines(executor, training, thread) if engines else None, lambda: engines is not None
        )
        loop = TrainerLoop(
            LoopSettings(
                base=base_facts.name,
                owner=owner,
                slots=slots,
                lease_s=lease_s,
                poll_s=0.1,
                drain_s=drain_s,
                work_folder=tmp_path / f"work-{owner}",
            ),
            catalog,
            store,
            soft_facts,
            training,
            tokenizer,
            asyncio.Event(),
            thread,
            access,
        )
        task = asyncio.create_task(loop.run())
        try:
            yield loop
        finally:
            loop.stop()
            await task
            await in_process.close()

    return run
