"""What a watcher is told, and how often."""

from uuid import uuid4

import pytest

from openmint.catalog.rows import Job, JobState
from openmint.clock import ManualClock
from openmint.identifiers import new_id
from openmint_trainer.progress import Progress


@pytest.fixture
def job() -> Job:
    import datetime

    now = datetime.datetime.now(datetime.UTC)
    return Job(
        job_id=new_id(), tenant="acme", policy_id=uuid4(), policy="p", base="b", spec={}, idempotency_key=None,
        request_id="r", request_hash=b"", state=JobState.RUNNING, fence=1, tries=1, owner=None, lease_until=None,
        cancel_requested=False, cancelled_by="", progress=None, step=0, steps=10, tokens=0, final_loss=None,
        cause=None, hint_event_id=uuid4(), created_at=now, started_at=now, changed_at=now,
    )  # fmt: skip


def test_speed_and_time_left_count_from_where_this_process_began(job: Job) -> None:
    clock = ManualClock()
    progress = Progress(job, steps=10, now=clock.monotonic_s)
    progress.start(step=4, tokens=400)
    clock.advance(2.0)
    fact = progress.take_step(5, 500, 0.7)
    assert fact is not None
    assert (fact.step, fact.steps, fact.loss, fact.tokens_per_s, fact.eta_s) == (5, 10, 0.7, 50.0, 10.0)
    assert progress.as_json() == {
        "step": 5, "steps": 10, "loss": 0.7, "tokens": 500, "tokens_per_s": 50.0, "eta_s": 10.0,
    }  # fmt: skip


def test_steps_within_a_second_are_told_once_but_the_last_one_always(job: Job) -> None:
    clock = ManualClock()
    progress = Progress(job, steps=4, now=clock.monotonic_s)
    progress.start(0, 0)
    told: list[int] = []
    for step in range(1, 5):
        clock.advance(0.4)
        fact = progress.take_step(step, step, 1.0)
        if fact is not None:
            told.append(fact.step)
    assert told == [1, 4]
