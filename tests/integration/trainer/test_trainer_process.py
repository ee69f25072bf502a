"""The trainer as a process: killed, stopped, started again."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest
import torch
from transformers import AutoTokenizer

from openmint.adapters.store import Store
from openmint.bases import BaseFacts
from openmint.bus.connection import Bus
from openmint.catalog import checkpoints
from openmint.catalog.database import Catalog
from openmint.catalog.rows import Job, JobState
from openmint.events import TrainRequested
from openmint.settings import CommonSettings
from openmint_trainer.app import main
from openmint_trainer.checkpoints import read_checkpoint
from openmint_trainer.data import tokenise_rows
from openmint_trainer.executor import Executor
from openmint_trainer.mixed_training import MixedTraining
from openmint_trainer.resident_base import load_base

ROWS = [{"prompt": f"{a}*{b}=", "completion": f" {a * b}"} for a in range(5) for b in range(5)]
STEPS = 200


class Requests(Protocol):
    async def train(self, tenant: str = ..., policy: str = ..., rows: object = ..., **sections: object) -> Job: ...
    async def job(self, job_id: object) -> Job: ...
    async def until(self, job_id: object, condition: Callable[[Job], bool], timeout_s: float = ...) -> Job: ...
    async def ended(self, job_id: object, timeout_s: float = ...) -> Job: ...


@pytest.fixture
def start_trainer(
    settings: CommonSettings, bus: Bus, store: Store, tiny_base: Path, tmp_path: Path
) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OPENMINT_STATE_DIR": str(tmp_path),
        "OPENMINT_NATS_URL": settings.nats_url,
        "OPENMINT_NATS_USER": settings.nats_user,
        "OPENMINT_NATS_PASSWORD": settings.nats_password,
        "OPENMINT_POSTGRES_DSN": settings.postgres_dsn,
        "OPENMINT_STORE_URL": store.url,
        "OPENMINT_BASE_FOLDER": str(tiny_base),
        "OPENMINT_TRAINER_DTYPE": "float32",
        "OPENMINT_TRAINER_LEASE_S": "2",
        "OPENMINT_TRAINER_POLL_S": "0.2",
        "OPENMINT_HEALTH_FILE": str(tmp_path / "health.json"),
    }

    def start() -> subprocess.Popen[bytes]:
        log = (tmp_path / f"trainer-{len(started)}.log").open("wb")
        argv = [sys.executable, "-m", "openmint_trainer.app"]
        started.append(subprocess.Popen(argv, env=environment, stdout=log, stderr=subprocess.STDOUT))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
    for path in sorted(tmp_path.glob("trainer-*.log")):
        print(f"--- {path.name}\n{path.read_text(errors='replace')[-4000:]}")


def uninterrupted(job: Job, base_folder: Path, facts: BaseFacts, folder: Path) -> dict[str, torch.Tensor]:
    """The checkpoint of the same job trained in one go, alone, here."""
    spec = TrainRequested.model_validate(job.spec)
    base = load_base(base_folder, facts.name, facts.digest, "float32")
    training = MixedTraining(Executor(base, 1), budget_tokens=2048)
    rows = tokenise_rows(ROWS, AutoTokenizer.from_pretrained(base_folder), spec.training.max_tokens_per_row)
    training.admit("alone", "alone", spec, rows)
    while training.has_work:
        training.advance()
    training.save("alone", folder / "alone.safetensors")
    return read_checkpoint(folder / "alone.safetensors").tensors


@pytest.mark.slow
async def test_a_killed_trainers_job_is_resumed_by_another_process_to_the_same_weights(
    requests: Requests,
    start_trainer: Callable[[], subprocess.Popen[bytes]],
    catalog: Catalog,
    store: Store,
    tiny_base: Path,
    base_facts: BaseFacts,
    tmp_path: Path,
) -> None:
    training = {"steps": STEPS, "checkpoint_every_steps": 10, "revision_at_steps": [100]}
    job = await requests.train(rows=ROWS, training=training)
    company = await requests.train("umbrella", "other", training={"steps": 60, "checkpoint_every_steps": 1000})
    first = start_trainer()
    killed_at = await requests.until(job.job_id, lambda job: job.step >= 20, 120)
    first.kill()
    first.wait()
    assert killed_at.step < STEPS, "the job was done before the kill: give it more steps"

    second = start_trainer()
    ended = await requests.ended(job.job_id, 120)
    assert ended.state is JobState.COMPLETED
    assert ended.fence == killed_at.fence + 1
    assert (await requests.ended(company.job_id, 120)).state is JobState.COMPLETED
    async with catalog.connection() as connection:
        row = await checkpoints.latest_checkpoint(connection, job.job_id)
        revisions = await connection.fetch("select step from revisions where job_id = $1 order by step", job.job_id)
    assert row is not None
    assert [r["step"] for r in revisions] == [100, STEPS]
    await store.fetch_to(row.key, tmp_path / "resumed.safetensors")
    resumed = read_checkpoint(tmp_path / "resumed.safetensors", row.sha256).tensors
    expected = uninterrupted(job, tiny_base, base_facts, tmp_path)
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.items())

    second.send_signal(signal.SIGTERM)
    assert second.wait(30) == 0


@pytest.mark.slow
async def test_sigterm_checkpoints_and_gives_the_job_back_at_once(
    requests: Requests, start_trainer: Callable[[], subprocess.Popen[bytes]]
) -> None:
    job = await requests.train(rows=ROWS, training={"steps": 1_000_000, "checkpoint_every_steps": 1_000_000})
    process = start_trainer()
    await requests.until(job.job_id, lambda job: bool(job.progress and job.progress["step"] > 20), 120)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    stopped = await requests.job(job.job_id)
    assert stopped.state is JobState.RUNNING
    assert stopped.owner is None
    assert stopped.step > 20


def test_a_trainer_refuses_to_start_with_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with pytest.raises(SystemExit, match="set OMP_NUM_THREADS=1"):
        main()


def test_a_trainer_names_a_folder_that_is_no_base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OPENMINT_BASE_FOLDER", str(tmp_path))
    monkeypatch.setenv("OPENMINT_NATS_URL", "nats://127.0.0.1:1")
    monkeypatch.setenv("OPENMINT_POSTGRES_DSN", "postgresql://127.0.0.1:1/none")
    with pytest.raises(SystemExit, match="is no base model's folder"):
        main()
