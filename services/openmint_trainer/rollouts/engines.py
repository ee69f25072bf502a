"""Sampling on engines: each step's weights go there as an ephemeral revision, on the same path as what is served.

The scheduler is asked for a load of class rollout and holds what is leased; the engine names in every answer who gave
it, and an answer of anybody else is refused.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import httpx
import structlog
from pydantic import JsonValue

from openmint.endings import finish
from openmint.engines.loads import LoadOrder, LoadWaiter
from openmint.engines.protocol import BOOT_HEADER, REVISION_HEADER, TENANT_HEADER, VERDICT_HEADER
from openmint.engines.residency import Placement
from openmint.errors import EngineFailed, OpenmintError, Overloaded, Stale
from openmint.events.serving import SERVE_POOL
from openmint_trainer.banks import AdapterShape
from openmint_trainer.executor import Executor
from openmint_trainer.mixed_training import MixedTraining
from openmint_trainer.rollouts.contract import BadSample, FinishReason, RolloutOwner, Sample, SampleRequest, Snapshot
from openmint_trainer.rollouts.ephemeral import EphemeralRevisions, write_snapshot
from openmint_trainer.training_thread import TrainingThread

log = structlog.get_logger()

BUSY_RETRY_S = 0.2
BUSY_PATIENCE_S = 120.0
"""An engine that is full says so at once; a rollout waits for room as long as this."""

MAX_SEED = 2**48
"""Engines add the sample's index to it and keep it in 64 bits."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How engines are asked. `requests_at_once` bounds all requests of this process."""

    base: str
    pool: str = SERVE_POOL
    load_deadline_s: float = 120.0
    requests_at_once: int = 32


class EngineSamplers:
    """`Samplers` by cold loads; a policy trains on while it is sampled."""

    overlaps = True

    def __init__(
        self,
        settings: EngineSettings,
        waiter: LoadWaiter,
        http: httpx.AsyncClient,
        revisions: EphemeralRevisions,
        executor: Executor,
        training: MixedTraining,
        thread: TrainingThread,
        work_folder: Path,
    ) -> None:
        self._settings = settings
        self._waiter = waiter
        self._http = http
        self._revisions = revisions
        self._executor = executor
        self._training = training
        self._thread = thread
        self._work_folder = work_folder
        self._room = asyncio.Semaphore(settings.requests_at_once)

    async def snapshot(self, owner: RolloutOwner, step: int) -> Snapshot:
        """Raises: Stale when the run is gone."""
        path = self._work_folder / f"{owner.job_id}-{owner.fence}-{step}.rollout"

        def write() -> AdapterShape:
            run = self._training.runs.get(owner.key)
            if run is None:
                raise Stale("the run is gone")
            write_snapshot(self._executor, run.policy, path)
            return run.policy.slot.shape

        return Snapshot(owner, step, path, await self._thread.run(write))

    @asynccontextmanager
    async def lease(self, snapshot: Snapshot) -> AsyncGenerator["EngineSampler"]:
        """Raises: NoEngine, LoadTimeout, Overloaded, LoadFailed, BusUnavailable, StoreUnavailable, BadAdapter."""
        owner, settings = snapshot.owner, self._settings
        revision = await self._revisions.publish(snapshot)
        order = LoadOrder(
            base=settings.base,
            tenant=owner.tenant,
            policy=owner.policy,
            revision_id=revision.revision_id,
            digest=revision.digest,
            rank=revision.rank,
            adapter_bytes=revision.adapter_bytes,
            pool=settings.pool,
            load_class="rollout",
        )
        try:
            async with self._waiter.lease(order, settings.load_deadline_s) as placement:
                log.info("rollout.leased", job_id=str(owner.job_id), step=snapshot.step, revision=revision.digest)
                yield EngineSampler(revision.digest, placement, owner.tenant, self._http, self._room)
        finally:
            with contextlib.suppress(OpenmintError):
                await finish(self._revisions.withdraw(revision))


@dataclass(frozen=True, slots=True)
class EngineSampler:
    """One revision on one engine."""

    digest: str
    placement: Placement
    tenant: str
    http: httpx.AsyncClient
    room: asyncio.Semaphore

    async def sample(self, request: SampleRequest) -> list[Sample]:
        """Each prompt is one request; whoever answered it is named in its samples.

        Raises: EngineFailed when the engine breaks or was started anew, Overloaded when it stays full, BadSample.
        """
        answers = await asyncio.gather(*(self._ask(request, index) for index in range(len(request.prompts))))
        return [sample for answer in answers for sample in answer]

    async def _ask(self, request: SampleRequest, index: int) -> list[Sample]:
        # Everything is said, since an engine takes what is left out from the base's own generation settings.
        body: dict[str, JsonValue] = {
            "model": self.placement.adapter_name,
            "prompt": list(request.prompts[index]),
            "n": request.count,
            "max_tokens": request.max_tokens,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": (request.seed + index * request.count) % MAX_SEED,
            "logprobs": 0,
            "return_token_ids": True,
        }
        async with self.room:
            response = await self._post(body)
        digest = response.headers.get(REVISION_HEADER, "nobody")
        try:
            answer = response.json()
        except ValueError as error:
            raise EngineFailed(f"engine {self.placement.engine} did not answer in JSON") from error
        return _samples_of(answer, request, index, digest)

    async def _post(self, body: dict[str, JsonValue]) -> httpx.Response:
        ends_s = asyncio.get_running_loop().time() + BUSY_PATIENCE_S
        engine = self.placement.engine
        while True:
            try:
                response = await self.http.post(
                    f"{self.placement.url.rstrip('/')}/v1/completions", json=body, headers={TENANT_HEADER: self.tenant}
                )
            except httpx.HTTPError as error:
                raise EngineFailed(f"engine {engine} broke while sampling: {error!r}") from error
            if response.headers.get(BOOT_HEADER) != str(self.placement.boot_id):
                raise EngineFailed(f"engine {engine} was started anew while sampling")
            if response.status_code == 200:
                return response
            if response.status_code != 503 or response.headers.get(VERDICT_HEADER) != "busy":
                raise EngineFailed(f"engine {engine} answered {response.status_code}: {response.text[:300]}")
            if asyncio.get_running_loop().time() > ends_s:
                raise Overloaded(f"engine {engine} stayed full for {BUSY_PATIENCE_S:.0f} s")
            await asyncio.sleep(BUSY_RETRY_S)


def _samples_of(answer: object, request: SampleRequest, index: int, digest: str) -> list[Sample]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != request.count:
        raise BadSample(f"the engine gave no {request.count} choices for prompt {index}")
    try:
        ordered = sorted(choices, key=lambda choice: int(choice["index"]))
        return [_sample(choice, index, digest) for choice in ordered]
    except (KeyError, TypeError, ValueError) as error:
        raise BadSample(f"the engine's choices for prompt {index} lack tokens or logprobs") from error


def _sample(choice: dict[str, object], index: int, digest: str) -> Sample:
    token_ids = cast("list[int]", choice["token_ids"])
    logprobs = cast("dict[str, list[float]]", choice["logprobs"])["token_logprobs"]
    reason: FinishReason = "stop" if choice.get("finish_reason") == "stop" else "length"
    return Sample(index, tuple(int(t) for t in token_ids), tuple(float(v) for v in logprobs), digest, reason)
