"""Sampling in the trainer itself, for where no engine is: all policies that are being sampled share every pass.

A run takes no optimizer step while its samples are being made, so they are always of its present weights, and a job
repeats exactly from its seed.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from openmint.endings import end
from openmint.errors import Stale
from openmint_trainer.executor import TrainedPolicy
from openmint_trainer.mixed_training import MixedTraining
from openmint_trainer.rollouts.contract import RolloutOwner, Sample, SampleRequest, Snapshot
from openmint_trainer.rollouts.decoding import MixedDecoder, Stream, open_stream
from openmint_trainer.training_thread import TrainingThread

TURN_S = 0.05
"""How long passes are taken in one go; then training gets the thread for a micro-batch."""


class InProcessSamplers:
    """`Samplers` on the resident base. Close it."""

    overlaps = False

    def __init__(self, decoder: MixedDecoder, training: MixedTraining, thread: TrainingThread) -> None:
        self._decoder = decoder
        self._training = training
        self._thread = thread
        self._answers: dict[int, asyncio.Future[list[Sample]]] = {}
        self._pump: asyncio.Task[None] | None = None

    async def snapshot(self, owner: RolloutOwner, step: int) -> Snapshot:
        """Nothing is copied: the run waits for its samples."""
        return Snapshot(owner, step)

    @asynccontextmanager
    async def lease(self, snapshot: Snapshot) -> AsyncGenerator["InProcessSampler"]:
        """Raises: Stale when the run is gone."""
        key = snapshot.owner.key
        policy, digest = await self._thread.run(lambda: self._look(key))
        try:
            yield InProcessSampler(digest, lambda request: self._sample(key, policy, request))
        finally:
            await self._thread.run(lambda: self._decoder.close(lambda stream: stream.policy is policy))

    async def close(self) -> None:
        """Stop; who still waits is cancelled."""
        if self._pump is not None:
            await end(self._pump)
        for answer in self._answers.values():
            answer.cancel()
        self._answers.clear()

    def _look(self, key: Hashable) -> tuple[TrainedPolicy, str]:
        run = self._training.runs.get(key)
        if run is None:
            raise Stale("the run is gone")
        return run.policy, self._training.weights_digest(key)

    async def _sample(self, key: Hashable, policy: TrainedPolicy, request: SampleRequest) -> list[Sample]:
        stream = open_stream(key, policy, request)
        answer: asyncio.Future[list[Sample]] = asyncio.get_running_loop().create_future()
        self._answers[id(stream)] = answer
        try:
            await self._thread.run(lambda: self._decoder.open(stream))
            if self._pump is None or self._pump.done():
                self._pump = asyncio.create_task(self._sample_until_idle())
            return await answer
        finally:
            self._answers.pop(id(stream), None)
            if answer.cancelled():
                await self._thread.run(lambda: self._decoder.close(lambda other: other is stream))

    async def _sample_until_idle(self) -> None:
        while not self._decoder.is_idle:
            try:
                done = await self._thread.run(self._take_turn)
            except Exception as error:
                # What the base can't do, it can do for nobody: everybody who waits is told.
                await self._thread.run(lambda: self._decoder.close(lambda _: True))
                for answer in self._answers.values():
                    if not answer.done():
                        answer.set_exception(error)
                return
            for stream, digest in done:
                answer = self._answers.get(id(stream))
                if answer is not None and not answer.done():
                    # What the weights are now is what made the samples: nobody stepped, or the check refuses them.
                    answer.set_result([_made_by(sample, digest) for sample in stream.samples()])
            await asyncio.sleep(0)

    def _take_turn(self) -> list[tuple[Stream, str]]:
        ends_s = time.monotonic() + TURN_S
        done: list[Stream] = []
        while not self._decoder.is_idle and time.monotonic() < ends_s:
            done += self._decoder.advance()
        runs = self._training.runs
        return [(stream, self._training.weights_digest(stream.key)) for stream in done if stream.key in runs]


@dataclass(frozen=True, slots=True)
class InProcessSampler:
    """`Sampler` of one run's present weights."""

    digest: str
    _ask: Callable[[SampleRequest], Awaitable[list[Sample]]]

    async def sample(self, request: SampleRequest) -> list[Sample]:
        """Raises: BadRequest when the base or the prompts are beyond this sampler."""
        return await self._ask(request)


def _made_by(sample: Sample, digest: str) -> Sample:
    return Sample(sample.prompt_index, sample.token_ids, sample.logprobs, digest, sample.finish_reason)
