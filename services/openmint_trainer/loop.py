"""The trainer as a worker: claims due jobs of its base, trains them together, brings their checkpoints out.

Handlers wake it, the catalogue decides. The tensors are `mixed_training`'s, the lease and the writes `held_job`'s.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Coroutine, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
from pydantic import ValidationError

from openmint.adapters.store import Store
from openmint.catalog import checkpoints, jobs
from openmint.catalog.database import Catalog
from openmint.catalog.rows import Job
from openmint.endings import end
from openmint.errors import BadRequest, CallerMistake, Fenced, OpenmintError, Overloaded, TryAgain
from openmint.events import Cause, Fact, JobProgressed, TrainRequested
from openmint.row_forms import JsonRow
from openmint_trainer.checkpoints import Checkpoint, read_checkpoint
from openmint_trainer.dataset_source import read_dataset
from openmint_trainer.held_job import HeldJob, PendingCheckpoint, checkpoint_file
from openmint_trainer.mixed_training import MixedTraining, Run, RunFailed, StepFinished
from openmint_trainer.progress import Progress
from openmint_trainer.recipes import read_rows
from openmint_trainer.rollouts.access import RolloutAccess, make_plan
from openmint_trainer.rollouts.contract import RolloutOwner
from openmint_trainer.rollouts.desk import RolloutDesk, RolloutReady
from openmint_trainer.rollouts.prompts import RolloutTokenizer
from openmint_trainer.rows import Row
from openmint_trainer.training_thread import TrainingThread

log = structlog.get_logger()

CLAIM_PAUSE_S = 5.0
"""After a job that memory has no room for was given back; at once it would only come here again."""


class ProgressBus(Protocol):
    """Where progress is told; `openmint.bus.connection.Bus` is one."""

    async def publish_soft(self, fact: Fact) -> bool:
        """Publish what may be lost; False when it was."""
        ...


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """What of the settings the loop needs."""

    base: str
    owner: str
    slots: int
    lease_s: float
    poll_s: float
    drain_s: float
    work_folder: Path


@dataclass(slots=True)
class _Admitted:
    held: HeldJob
    spec: TrainRequested


class TrainerLoop:
    """One trainer process's work."""

    def __init__(
        self,
        settings: LoopSettings,
        catalog: Catalog,
        store: Store,
        bus: ProgressBus,
        training: MixedTraining,
        tokenizer: RolloutTokenizer,
        wake: asyncio.Event,
        thread: TrainingThread,
        rollouts: RolloutAccess,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._store = store
        self._bus = bus
        self._training = training
        self._tokenizer = tokenizer
        self._wake = wake
        self._thread = thread
        self._rollouts = rollouts
        self._stopping = asyncio.Event()
        self._drain_until_s = math.inf
        self._claim_again_s = 0.0
        self._work = asyncio.Event()
        self._desk = RolloutDesk(rollouts.max_in_flight, self._work.set)
        self._jobs: dict[Hashable, _Admitted] = {}
        self._arriving: dict[Hashable, HeldJob] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Come to rest between two steps, save, give the jobs back. `run` then returns."""
        if not self._stopping.is_set():
            self._drain_until_s = time.monotonic() + self._settings.drain_s
        self._stopping.set()
        self._wake.set()
        self._work.set()

    async def run(self) -> None:
        """Work until `stop`. An error that is nobody's job's fault ends it: the process then starts afresh."""
        self._settings.work_folder.mkdir(parents=True, exist_ok=True)
        claiming = asyncio.create_task(self._claim_until_stopped())
        training = asyncio.create_task(self._train_until_stopped())
        done, _ = await asyncio.wait({claiming, training}, return_when=asyncio.FIRST_EXCEPTION)
        self.stop()
        try:
            for task in done:
                task.result()
            await self._hand_back()
        finally:
            await end(claiming, training, *self._tasks)
            await self._desk.close()
            for held in self._all_held():
                await held.close()
            self._thread.close()

    # Claims

    async def _claim_until_stopped(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                while self._may_claim() and await self._claim_one():
                    pass
            except TryAgain as error:
                log.warning("claim.failed", error=error.detail)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.poll_s):
                    await self._wake.wait()

    def _may_claim(self) -> bool:
        is_paused = time.monotonic() < self._claim_again_s
        return not self._stopping.is_set() and not is_paused and len(self._all_held()) < self._settings.slots

    async def _claim_one(self) -> bool:
        async with self._catalog.connection() as connection:
            job = await jobs.claim_job(connection, self._settings.base, self._settings.owner, self._settings.lease_s)
        if job is None:
            return False
        steps = int(job.spec.get("training", {}).get("steps", job.steps))
        held = HeldJob(
            self._catalog, self._store, job, Progress(job, steps, time.monotonic, step=job.step), self._settings.lease_s
        )
        held.start()
        self._arriving[held.key] = held
        log.info("job.claimed", job_id=str(job.job_id), policy=f"{job.tenant}/{job.policy}", fence=job.fence)
        self._spawn(self._admit(held))
        return True

    async def _admit(self, held: HeldJob) -> None:
        job = held.job
        try:
            spec = _read_spec(job)
            raw = await held.persist(lambda: read_dataset(self._store, held.job.tenant, spec.dataset))
            rows, lag = await self._prepare(held, spec, raw)
            checkpoint = await self._checkpoint_of(held)
            if self._stopping.is_set():
                await held.release()
                return
            run = await self._thread.run(
                lambda: self._training.admit(held.key, job.tenant, spec, rows, checkpoint, lag)
            )
            held.progress.start(run.step, run.tokens)
            self._jobs[held.key] = _Admitted(held, spec)
            await self._begin_rollouts(run)
            if run.is_done:
                await self._finish(held.key)
            self._work.set()
        except Fenced:
            await held.close()
        except Overloaded as error:
            # Not this job's fault: another trainer may have room now, or this one when a run has ended.
            log.warning("job.not_admitted", job_id=str(job.job_id), reason=error.detail)
            self._claim_again_s = time.monotonic() + CLAIM_PAUSE_S
            await held.release()
        except Exception as error:
            # Whatever reading this job's data or state raises is about this job alone.
            log.warning("job.refused", job_id=str(job.job_id), error=str(error), exc_info=not _is_ours(error))
            await held.fail(cause_of(error))
        finally:
            if held.key not in self._jobs:
                await self._desk.leave(held.key)
            if held.is_lost or held.key in self._jobs:
                self._arriving.pop(held.key, None)
            self._wake.set()

    async def _prepare(self, held: HeldJob, spec: TrainRequested, raw: Sequence[JsonRow]) -> tuple[list[Row], int]:
        """The rows to learn, or a place at the desk; and how many steps sampling may run ahead."""
        if spec.recipe != "grpo":
            return await asyncio.to_thread(read_rows, spec, raw, self._tokenizer), 0
        plan = await asyncio.to_thread(
            make_plan, spec, raw, self._tokenizer, self._training.budget_tokens, self._rollouts.endpoints
        )
        samplers = await self._rollouts.choose()
        job = held.job
        self._desk.enter(RolloutOwner(held.key, job.tenant, job.policy, job.job_id, job.fence), plan, samplers)
        return [], plan.spec.max_staleness if samplers.overlaps else 0

    async def _begin_rollouts(self, run: Run) -> None:
        if run.rollouts is not None and not run.is_done and not self._stopping.is_set():
            await self._desk.begin(run.key, run.step, run.rollouts.due(run.step))

    async def _checkpoint_of(self, held: HeldJob) -> Checkpoint | None:
        async def latest() -> checkpoints.Checkpoint | None:
            async with self._catalog.connection() as connection:
                return await checkpoints.latest_checkpoint(connection, held.job.job_id)

        row = await held.persist(latest)
        if row is None:
            return None
        path = checkpoint_file(self._settings.work_folder, held.job, row.step).with_suffix(".resume")
        try:
            await held.persist(lambda: self._store.fetch_to(row.key, path))
            return await asyncio.to_thread(read_checkpoint, path, row.sha256)
        finally:
            path.unlink(missing_ok=True)

    # Training

    async def _train_until_stopped(self) -> None:
        while True:
            await self._drop_lost_and_cancelled()
            await self._take_rollouts()
            if self._stopping.is_set():
                self._training.is_draining = True
                # A step too long to end in time is lost; the job goes on from its last checkpoint.
                if not self._training.has_work or time.monotonic() > self._drain_until_s:
                    return
            if not self._training.has_work:
                self._work.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2 if self._jobs else self._settings.poll_s):
                        await self._work.wait()
                continue
            for event in await self._thread.run(self._training.advance):
                await self._take(event)

    async def _take_rollouts(self) -> None:
        for outcome in self._desk.take():
            if outcome.key not in self._jobs:
                continue
            if isinstance(outcome, RolloutReady):
                ready = outcome
                await self._thread.run(lambda: self._training.deliver(ready.key, ready.batch))  # noqa: B023
            else:
                await self._fail(outcome.key, outcome.error)

    async def _fail(self, key: Hashable, error: Exception) -> None:
        held = self._jobs[key].held
        log.warning("job.not_trained_on", job_id=str(held.job.job_id), error=str(error), exc_info=not _is_ours(error))
        await self._drop(key)
        self._arriving[key] = held

        async def fail() -> None:
            try:
                await held.fail(cause_of(error))
            finally:
                self._arriving.pop(key, None)
                self._wake.set()

        self._spawn(fail())

    async def _take(self, event: StepFinished | RunFailed) -> None:
        admitted = self._jobs.get(event.key)
        if admitted is None:
            return
        held = admitted.held
        if isinstance(event, RunFailed):
            await self._fail(event.key, event.error)
            return
        fact = held.progress.take_step(event.step, event.tokens, event.loss, event.metrics)
        if fact is not None:
            self._spawn(self._publish(fact))
        training = admitted.spec.training
        is_last = event.step >= training.steps
        want_revision = is_last or event.step in training.revision_at_steps
        if want_revision or event.step % training.checkpoint_every_steps == 0:
            await self._save(event.key, want_revision)
        if is_last:
            await self._finish(event.key)
        elif event.key in self._jobs:
            await self._begin_rollouts(self._training.runs[event.key])

    async def _save(self, key: Hashable, want_revision: bool) -> None:
        held = self._jobs[key].held
        step = self._training.runs[key].step
        path = checkpoint_file(self._settings.work_folder, held.job, step)
        saved = await self._thread.run(lambda: self._training.save(key, path))
        held.add_checkpoint(PendingCheckpoint(step, saved, want_revision))

    async def _finish(self, key: Hashable) -> None:
        """The last step is taken: free the slot at once, and end the job when its last checkpoint is committed."""
        held = self._jobs[key].held
        run = self._training.runs[key]
        steps, tokens, loss = run.step, run.tokens, run.last_loss
        await self._drop(key)
        self._arriving[key] = held

        async def complete() -> None:
            try:
                await held.flush()
                await held.complete(steps, tokens, loss if loss is not None and math.isfinite(loss) else None)
            finally:
                self._arriving.pop(key, None)
                self._wake.set()
            log.info("job.completed", job_id=str(held.job.job_id), steps=steps, tokens=tokens, loss=loss)

        self._spawn(complete())

    async def _drop_lost_and_cancelled(self) -> None:
        for key, admitted in list(self._jobs.items()):
            held = admitted.held
            if held.is_lost:
                await self._drop(key)
                await held.close()
            elif held.cancel_requested and self._training.runs[key].is_between_steps:
                await self._drop(key)
                self._spawn(held.cancel())
                log.info("job.cancelled", job_id=str(held.job.job_id), step=held.progress.step)

    async def _drop(self, key: Hashable) -> None:
        del self._jobs[key]
        await self._desk.leave(key)
        await self._thread.run(lambda: self._training.drop(key))
        self._wake.set()

    # The end of the process

    async def _hand_back(self) -> None:
        for key, admitted in list(self._jobs.items()):
            held, run = admitted.held, self._training.runs[key]
            if not held.is_lost and run.may_be_saved and run.step > held.newest_step:
                await self._save(key, want_revision=False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_s):
                await asyncio.gather(*(self._release(held) for held in self._all_held()))
                await asyncio.gather(*self._tasks)

    async def _release(self, held: HeldJob) -> None:
        await held.flush()
        if not held.is_lost and held.key in self._jobs:
            await held.release()

    def _all_held(self) -> list[HeldJob]:
        return [*self._arriving.values(), *(admitted.held for admitted in self._jobs.values())]

    async def _publish(self, fact: JobProgressed) -> None:
        await self._bus.publish_soft(fact)

    def _spawn(self, call: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def cause_of(error: Exception) -> Cause:
    """Why a job failed, for its owner. What we did not expect is our own fault."""
    if isinstance(error, OpenmintError):
        fault = "user" if isinstance(error, CallerMistake) else "server"
        return Cause(code=error.code, detail=error.detail, field=error.field, fault=fault)
    return Cause(code="internal", detail=f"{type(error).__name__}: {error}"[:500], fault="server")


def _is_ours(error: Exception) -> bool:
    return isinstance(error, OpenmintError)


def _read_spec(job: Job) -> TrainRequested:
    try:
        return TrainRequested.model_validate(job.spec)
    except ValidationError as error:
        raise BadRequest(f"the job's request can't be read: {error.errors()[0]['msg']}") from error
