"""The trainer's worker against a real catalogue and a real store."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

import pytest
import torch

from openmint.adapters.store import Store
from openmint.catalog import checkpoints, jobs
from openmint.catalog.database import Catalog
from openmint.catalog.rows import Job, JobState
from openmint.events import Fact, JobProgressed
from openmint_trainer.checkpoints import Checkpoint, read_checkpoint
from openmint_trainer.loop import TrainerLoop

Running = Callable[..., AbstractAsyncContextManager[TrainerLoop]]


class Requests(Protocol):
    async def train(self, tenant: str = ..., policy: str = ..., rows: object = ..., **sections: object) -> Job: ...
    async def job(self, job_id: object) -> Job: ...
    async def until(self, job_id: object, condition: Callable[[Job], bool], timeout_s: float = ...) -> Job: ...
    async def ended(self, job_id: object, timeout_s: float = ...) -> Job: ...


class SoftFacts(Protocol):
    facts: list[Fact]


async def last_checkpoint(catalog: Catalog, store: Store, job: Job, folder: Path) -> Checkpoint:
    async with catalog.connection() as connection:
        row = await checkpoints.latest_checkpoint(connection, job.job_id)
    assert row is not None
    path = folder / f"{job.job_id}.safetensors"
    await store.fetch_to(row.key, path)
    return read_checkpoint(path, row.sha256)


def same_weights(one: Checkpoint, other: Checkpoint) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )


async def test_jobs_of_two_tenants_are_trained_together_and_end_with_their_revisions_wanted(
    requests: Requests, running_trainer: Running, catalog: Catalog, store: Store, soft_facts: SoftFacts, tmp_path: Path
) -> None:
    first = await requests.train("acme", "p", training={"revision_at_steps": [3]})
    second = await requests.train("umbrella", "q", adapter={"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj"]})
    async with running_trainer():
        ended = [await requests.ended(job.job_id) for job in (first, second)]
    assert [(job.state, job.step, job.steps) for job in ended] == [(JobState.COMPLETED, 6, 6)] * 2
    assert all(job.tokens > 0 and job.final_loss is not None for job in ended)
    async with catalog.connection() as connection:
        wanted = await connection.fetch("select job_id, step, state::text from revisions order by step")
        made = await connection.fetch("select step from checkpoints where job_id = $1 order by step", first.job_id)
    assert {(row["job_id"], row["step"], row["state"]) for row in wanted} == {
        (first.job_id, 3, "pending"),
        (first.job_id, 6, "pending"),
        (second.job_id, 6, "pending"),
    }
    assert {row["step"] for row in made} >= {3, 6}
    checkpoint = await last_checkpoint(catalog, store, second, tmp_path)
    assert (checkpoint.meta.rank, checkpoint.meta.targets, checkpoint.meta.step) == (4, ["q_proj", "v_proj"], 6)
    progressed = [fact for fact in soft_facts.facts if isinstance(fact, JobProgressed) and fact.job_id == first.job_id]
    assert progressed[-1].step == 6
    assert progressed[-1].tokens_per_s > 0


async def test_jobs_that_cannot_be_trained_fail_by_name_and_the_others_go_on(
    requests: Requests, running_trainer: Running, store: Store
) -> None:
    long_row = await requests.train(
        policy="a", rows=[{"prompt": "x" * 40, "completion": "y"}], training={"max_tokens_per_row": 16}
    )
    above_budget = await requests.train(policy="b", rows=[{"prompt": "x" * 300, "completion": "y"}])
    unknown_target = await requests.train(policy="c", adapter={"targets": ["w1"]})
    lost_data = await requests.train(policy="d", rows=[{"prompt": "gone", "completion": "y"}])
    await store.delete(f"datasets/acme/{lost_data.spec['dataset']['digest'].removeprefix('sha256:')}.jsonl")
    good = await requests.train(policy="e")
    async with running_trainer():
        causes = {}
        for name, job in {
            "long": long_row,
            "budget": above_budget,
            "target": unknown_target,
            "lost": lost_data,
        }.items():
            ended = await requests.ended(job.job_id)
            assert ended.state is JobState.FAILED
            assert ended.cause is not None
            causes[name] = ended.cause
        assert (await requests.ended(good.job_id)).state is JobState.COMPLETED
    assert "row 1 has 42 tokens, more than training.max_tokens_per_row = 16" in causes["long"].detail
    assert "row 1 has 301 tokens, more than this trainer's 256" in causes["budget"].detail
    assert "'w1' is not a linear of this base; allowed are" in causes["target"].detail
    assert causes["target"].field == "adapter.targets"
    assert causes["lost"].code == "not_found"
    assert {cause.fault for cause in causes.values()} == {"user"}


async def test_a_cancel_is_honoured_between_two_steps(
    requests: Requests, running_trainer: Running, catalog: Catalog
) -> None:
    job = await requests.train(training={"steps": 100_000})
    async with running_trainer(lease_s=0.8):
        await requests.until(job.job_id, lambda job: job.step >= 2)
        async with catalog.connection() as connection:
            await jobs.request_cancel(connection, "acme", job.job_id, cancelled_by="a person")
        ended = await requests.ended(job.job_id)
    assert ended.state is JobState.CANCELLED
    assert ended.cancelled_by == "a person"


async def test_a_trainer_that_was_replaced_writes_nothing_more_and_takes_other_work(
    requests: Requests, running_trainer: Running, catalog: Catalog, store: Store
) -> None:
    job = await requests.train(training={"steps": 100_000})
    async with running_trainer(lease_s=1.0):
        held = await requests.until(job.job_id, lambda job: job.step >= 2)
        async with catalog.connection() as connection:
            await connection.execute(
                "update jobs set lease_until = clock_timestamp() - interval '1 second' where job_id = $1", job.job_id
            )
            taken = None
            while taken is None:
                await connection.execute(
                    "update jobs set lease_until = clock_timestamp() - interval '1 second' where job_id = $1",
                    job.job_id,
                )
                taken = await jobs.claim_job(connection, held.base, "another", 60.0)
        other = await requests.train(policy="q")
        assert (await requests.ended(other.job_id)).state is JobState.COMPLETED
        async with catalog.connection() as connection:
            fences = await connection.fetch("select distinct fence from checkpoints where job_id = $1", job.job_id)
    now = await requests.job(job.job_id)
    assert (now.state, now.owner, now.fence) == (JobState.RUNNING, "another", taken.fence)
    assert taken.fence not in {row["fence"] for row in fences}
    assert not [key for key in await store.list("checkpoints/") if f"/{taken.fence}/" in key]


@pytest.mark.slow
async def test_a_stopped_trainer_hands_its_job_over_and_the_next_ends_with_the_same_weights(
    requests: Requests, running_trainer: Running, catalog: Catalog, store: Store, tmp_path: Path
) -> None:
    training = {"steps": 60, "checkpoint_every_steps": 1000}
    whole = await requests.train(policy="whole", training=training)
    async with running_trainer("one"):
        await requests.ended(whole.job_id)
    broken = await requests.train(policy="broken", training=training)
    company = await requests.train(policy="company", training={"steps": 100_000, "checkpoint_every_steps": 1000})
    async with running_trainer("two"):
        await requests.until(company.job_id, lambda job: job.state is JobState.RUNNING)
        await asyncio.sleep(0.3)
    between = await requests.job(broken.job_id)
    async with running_trainer("three"):
        ended = await requests.ended(broken.job_id)
    assert ended.state is JobState.COMPLETED
    if between.state is JobState.RUNNING:
        assert between.owner is None
        assert ended.fence > between.fence
    one = await last_checkpoint(catalog, store, whole, tmp_path)
    other = await last_checkpoint(catalog, store, broken, tmp_path)
    assert same_weights(one, other)
    assert one.meta == other.meta


async def test_a_step_too_long_to_end_in_time_is_given_up_and_the_job_is_given_back(
    requests: Requests, running_trainer: Running
) -> None:
    job = await requests.train(training={"steps": 50, "batch_rows": 4096})
    async with running_trainer(drain_s=0.2):
        await requests.until(job.job_id, lambda job: job.state is JobState.RUNNING)
        await asyncio.sleep(0.3)
    stopped = await requests.job(job.job_id)
    assert (stopped.state, stopped.owner, stopped.step) == (JobState.RUNNING, None, 0)


@pytest.mark.slow
async def test_a_trainer_that_claims_its_own_expired_job_again_goes_on_under_the_new_fence(
    requests: Requests, running_trainer: Running, catalog: Catalog
) -> None:
    job = await requests.train(training={"steps": 120, "checkpoint_every_steps": 10})
    async with running_trainer(lease_s=60.0):
        await requests.until(job.job_id, lambda job: job.step >= 10)
        async with catalog.connection() as connection:
            await connection.execute(
                "update jobs set lease_until = clock_timestamp() - interval '1 second' where job_id = $1", job.job_id
            )
        ended = await requests.ended(job.job_id)
        async with catalog.connection() as connection:
            last = await checkpoints.latest_checkpoint(connection, job.job_id)
    assert (ended.state, ended.step, ended.fence) == (JobState.COMPLETED, 120, 2)
    assert last is not None
    assert last.fence == 2


async def test_a_job_that_memory_has_no_room_for_waits_and_is_not_failed(
    requests: Requests, running_trainer: Running
) -> None:
    first = await requests.train(policy="a", training={"steps": 100_000})
    async with running_trainer(bank_bytes=400_000):
        await requests.until(first.job_id, lambda job: job.step >= 2)
        second = await requests.train(policy="b")
        await requests.until(second.job_id, lambda job: job.fence >= 2)
    waiting = await requests.job(second.job_id)
    assert (waiting.state, waiting.owner, waiting.cause) == (JobState.RUNNING, None, None)
