"""What a rollout asks of a sampler and what it gets: samples that say which revision made them.

`Samplers` gives a lease on one policy's present weights, wherever they are sampled; `Sampler` answers for exactly the
digest of that lease. Nothing here knows tensors, engines or rewards.
"""

import hashlib
import math
from collections.abc import Hashable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol
from uuid import UUID

from openmint.errors import OpenmintError
from openmint_trainer.banks import AdapterShape

FinishReason = Literal["stop", "length"]


class WrongRevision(OpenmintError):
    """A sample was made by another revision than the one asked for."""

    code = "wrong_revision"


class BadSample(OpenmintError):
    """A sampler's answer can't be learnt from."""

    code = "bad_sample"


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """`count` samples of each prompt from the revision with this digest, at temperature 1, untruncated.

    The logprobs of such samples are those of the distribution that they were drawn from, which every loss here needs.
    """

    digest: str
    prompts: tuple[tuple[int, ...], ...]
    count: int
    max_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled continuation; logprobs in nats, one per token. `digest` is what the sampler says made it."""

    prompt_index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    digest: str
    finish_reason: FinishReason


class Sampler(Protocol):
    """One revision, as somebody samples it."""

    @property
    def digest(self) -> str:
        """The revision that answers."""
        ...

    async def sample(self, request: SampleRequest) -> list[Sample]:
        """`count` samples for each prompt, in the prompts' order.

        Raises: WrongRevision, BadSample; EngineFailed, NoEngine, Overloaded when it may work later.
        """
        ...


@dataclass(frozen=True, slots=True)
class RolloutOwner:
    """The claim of a job whose policy is sampled. `key` names its run in this process."""

    key: Hashable
    tenant: str
    policy: str
    job_id: UUID
    fence: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One policy's weights after `step` optimizer steps.

    `path` and `shape`: where they lie, and as what, for samplers that need a copy.
    """

    owner: RolloutOwner
    step: int
    path: Path | None = None
    shape: AdapterShape | None = None

    def drop(self) -> None:
        """The copy is not needed any more."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


class Samplers(Protocol):
    """Where policies in training are sampled."""

    @property
    def overlaps(self) -> bool:
        """Whether a policy may take optimizer steps while its samples are being made."""
        ...

    async def snapshot(self, owner: RolloutOwner, step: int) -> Snapshot:
        """Hold on to the weights of now; the caller lets no optimizer step of the run begin before it has returned."""
        ...

    def lease(self, snapshot: Snapshot) -> AbstractAsyncContextManager[Sampler]:
        """Those weights made ready to be sampled, and kept so until the end of the block.

        Raises: LoadTimeout, LoadFailed, NoEngine, Overloaded, StoreUnavailable.
        """
        ...


def check_samples(request: SampleRequest, samples: Sequence[Sample]) -> None:
    """Refuse what must not be learnt from.

    Raises: WrongRevision naming both digests; BadSample naming the prompt.
    """
    if len(samples) != len(request.prompts) * request.count:
        raise BadSample(f"{len(samples)} samples came for {len(request.prompts)} prompts of {request.count} each")
    for position, sample in enumerate(samples):
        if sample.digest != request.digest:
            raise WrongRevision(
                f"a sample for prompt {sample.prompt_index} was made by {sample.digest}, not by {request.digest} as "
                "asked: the sampler does not follow the trainer"
            )
        where = f"a sample for prompt {sample.prompt_index}"
        if sample.prompt_index != position // request.count:
            raise BadSample(f"{where} came in the place of one for prompt {position // request.count}")
        if not 1 <= len(sample.token_ids) <= request.max_tokens:
            raise BadSample(f"{where} has {len(sample.token_ids)} tokens; 1 to {request.max_tokens} were asked for")
        if len(sample.logprobs) != len(sample.token_ids):
            raise BadSample(f"{where} has {len(sample.logprobs)} logprobs for {len(sample.token_ids)} tokens")
        if not all(math.isfinite(value) and value <= 1e-3 for value in sample.logprobs):
            raise BadSample(f"{where} has a logprob that is not finite or above 0")


def derived_seed(*parts: object) -> int:
    """A seed below 2**63 that depends on every part and on nothing else."""
    digest = hashlib.sha256(":".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
