"""The rollouts that are out: begun when they are due, bounded in number, handed in when they are ready.

One task per run and sampled step. What goes wrong in it is its own job's failure; trouble of engines is waited out for
as long as the job allows.
"""

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import structlog

from openmint.endings import end
from openmint.errors import EngineFailed, LoadFailed, OpenmintError, TryAgain
from openmint_trainer.rollouts.contract import RolloutOwner, Samplers, Snapshot
from openmint_trainer.rollouts.episodes import RolloutBatch, RolloutPlan, collect

log = structlog.get_logger()

RETRY_S = 1.0


class RolloutTimeout(OpenmintError):
    """The rollouts of a step did not come in time."""

    code = "rollout_timeout"


@dataclass(frozen=True, slots=True)
class RolloutFailed:
    """A run gets no samples any more, for this reason."""

    key: Hashable
    error: Exception


@dataclass(frozen=True, slots=True)
class RolloutReady:
    """The episodes of one step have come."""

    key: Hashable
    batch: RolloutBatch


@dataclass(slots=True)
class _Sampled:
    owner: RolloutOwner
    plan: RolloutPlan
    samplers: Samplers
    tasks: set[asyncio.Task[None]]


class RolloutDesk:
    """Begins rollouts and keeps what they bring. `on_change` is called when `take` has something to give."""

    def __init__(self, max_in_flight: int, on_change: Callable[[], None]) -> None:
        self._limit = asyncio.Semaphore(max_in_flight)
        self._on_change = on_change
        self._sampled: dict[Hashable, _Sampled] = {}
        self._ready: list[RolloutReady | RolloutFailed] = []

    def enter(self, owner: RolloutOwner, plan: RolloutPlan, samplers: Samplers) -> None:
        """From now on rollouts of this run may be begun."""
        self._sampled[owner.key] = _Sampled(owner, plan, samplers, set())

    async def begin(self, key: Hashable, step: int, numbers: Sequence[int]) -> None:
        """Have the episodes of these steps sampled from the weights of now, which are those after `step` steps.

        When it returns the run may go on.
        """
        sampled = self._sampled.get(key)
        if sampled is None or not numbers:
            return
        try:
            snapshot = await sampled.samplers.snapshot(sampled.owner, step)
        except OpenmintError as error:
            self._add(RolloutFailed(key, error))
            return
        task = asyncio.create_task(self._roll_out(sampled, snapshot, numbers))
        sampled.tasks.add(task)
        task.add_done_callback(sampled.tasks.discard)

    @property
    def has_out(self) -> bool:
        """Whether anything is out, or waits to be taken."""
        return bool(self._ready) or any(sampled.tasks for sampled in self._sampled.values())

    def take(self) -> list[RolloutReady | RolloutFailed]:
        """What has come since the last time."""
        taken, self._ready = self._ready, []
        return taken

    async def leave(self, key: Hashable) -> None:
        """End whatever is out for a run."""
        sampled = self._sampled.pop(key, None)
        if sampled is not None:
            await end(*sampled.tasks)

    async def close(self) -> None:
        """End everything that is out."""
        for key in list(self._sampled):
            await self.leave(key)

    async def _roll_out(self, sampled: _Sampled, snapshot: Snapshot, numbers: Sequence[int]) -> None:
        key = sampled.owner.key
        remaining = list(numbers)
        patience_s = sampled.plan.spec.timeout_s
        ends_s = time.monotonic() + patience_s
        try:
            async with self._limit:
                while remaining:
                    try:
                        async with sampled.samplers.lease(snapshot) as sampler:
                            while remaining:
                                batch = await collect(sampled.plan, sampler, remaining[0], snapshot.step)
                                remaining.pop(0)
                                ends_s = time.monotonic() + patience_s
                                self._add(RolloutReady(key, batch))
                    except (TryAgain, EngineFailed, LoadFailed) as error:
                        if isinstance(error, LoadFailed) and error.retry_after_s is None:
                            raise
                        if time.monotonic() > ends_s:
                            raise
                        log.warning("rollout.retried", job_id=str(sampled.owner.job_id), error=error.detail)
                        await asyncio.sleep(error.retry_after_s or RETRY_S)
        except TimeoutError as error:
            detail = f"the rollouts of step {remaining[0]} did not come within {patience_s:g} s"
            failure = RolloutTimeout(detail, field="rollout.timeout_s")
            failure.__cause__ = error
            self._add(RolloutFailed(key, failure))
        except OpenmintError as error:
            self._add(RolloutFailed(key, _with_step(error, remaining)))
        except Exception as error:
            log.exception("rollout.broke", job_id=str(sampled.owner.job_id))
            self._add(RolloutFailed(key, error))
        finally:
            snapshot.drop()

    def _add(self, outcome: RolloutReady | RolloutFailed) -> None:
        if outcome.key in self._sampled:
            self._ready.append(outcome)
            self._on_change()


def _with_step(error: OpenmintError, remaining: Sequence[int]) -> OpenmintError:
    error.detail = f"rollouts of step {remaining[0]}: {error.detail}" if remaining else error.detail
    return error
