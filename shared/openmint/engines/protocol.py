"""What the scheduler can ask of an engine, whatever it is made of.

`openmint.engines.vllm` speaks to a real engine host over HTTP, `openmint.engines.simulated` is the timed model;
`tests/conformance/` holds both to the same cases. Inference does not pass here: it goes straight to `EngineState.url`
as OpenAI requests whose `model` is a resident's `adapter_name` (or the base's name).
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol
from uuid import UUID

EngineCondition = Literal["starting", "ready", "draining", "suspect"]

REVISION_HEADER = "x-openmint-revision"
"""On every answer of an engine: the digest that answered, or `base`."""

VERDICT_HEADER = "x-openmint-verdict"
"""On a 503 of the engine: `busy` or `absent` (nothing was done; another engine may be asked), or `suspect` (the answer
was not made of numbers and is withheld)."""

TENANT_HEADER = "x-openmint-tenant"
"""On every request to an engine: whose share it counts against."""

BOOT_HEADER = "x-openmint-boot"
"""On every answer of an engine: the boot that answered."""


@dataclass(frozen=True, slots=True)
class Resident:
    """An adapter on the engine, as the engine's worker lists it (never what somebody remembers having loaded)."""

    digest: str
    adapter_name: str
    in_flight: int
    adapter_bytes: int
    served: int = 0
    """Requests admitted to it since it was attached: what tells how much it is wanted between two looks."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """One consistent look at an engine."""

    engine: str
    base: str
    base_digest: str
    boot_id: UUID
    pools: tuple[str, ...]
    url: str
    condition: EngineCondition
    build: str
    capabilities: frozenset[str]
    capacity: int
    slots: int
    max_rank: int
    max_running: int
    list_version: int
    last_command: int
    running: int
    waiting: int
    residents: tuple[Resident, ...] = ()
    staged: tuple[str, ...] = ()
    slot_adapters: tuple[str | None, ...] = ()


@dataclass(frozen=True, slots=True)
class StageResult:
    """The revision lies verified on the engine's machine, in the engine's layout."""

    digest: str
    layout: str
    layout_bytes: int
    fetch_ms: float
    """With the verification of what came."""

    pack_ms: float
    was_staged: bool


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """One revision to attach; `label` is `tenant/policy` and only makes logs readable, `traceparent` only traces."""

    digest: str
    label: str
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class AttachResult:
    """One revision's outcome; `error` is empty when it is resident."""

    digest: str
    adapter_name: str = ""
    attach_ms: float = 0.0
    error_code: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Examination:
    """What probing one revision alone on an otherwise idle engine has shown.

    `failures` of `probes` gave no number, each on a cleansed engine whose base answered well before. With `probes` 0
    nothing was learnt. `is_clean`: the base answers well afterwards; else the engine needs a restart.
    """

    digest: str
    probes: int
    failures: int
    is_clean: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class CommandStamp:
    """Who commands: the leader's epoch for this base (an older one is refused) and a rising command number."""

    epoch: int
    command: int


class Engine(Protocol):
    """The control side of one engine.

    Every call raises StaleEpoch for an old epoch, EngineFailed when the engine is gone or does not answer in time.
    """

    async def state(self) -> EngineState:
        """What the engine holds now."""
        ...

    async def stage(self, stamp: CommandStamp, digest: str) -> StageResult:
        """Fetch, verify and repack a revision outside the engine process. Idempotent.

        Raises: BadAdapter when it must never be loaded, StoreUnavailable when a retry can help.
        """
        ...

    async def attach(self, stamp: CommandStamp, requests: list[AttachRequest]) -> list[AttachResult]:
        """Make staged revisions resident, all in one gap between steps; results in the order of the requests.

        An adapter already resident is answered with its present name. `error_code` is `full`, `not_staged` or
        `refused`.
        """
        ...

    async def remove(self, stamp: CommandStamp, adapter_name: str, timeout_s: float) -> bool:
        """Stop admitting to an adapter, wait until nothing of it is in flight, free its memory and check that.

        False when it was still in use after `timeout_s`; it is then admitted again.
        """
        ...

    async def unstage(self, stamp: CommandStamp, digest: str) -> None:
        """Drop the staged copy of a revision that is not resident."""
        ...

    async def restart(self, stamp: CommandStamp, reason: str) -> None:
        """Admit nothing more, let what is in flight end for a bounded time, then start a fresh boot.

        Returns at once; the next boot's heartbeats tell when it is there.
        """
        ...

    async def examine(self, stamp: CommandStamp, request: AttachRequest) -> Examination:
        """Probe a staged revision alone: admission is closed meanwhile, and nobody is told that it was here."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """Where to reach an engine and its host."""

    engine: str
    base: str
    url: str
    control_url: str
    boot_id: UUID
    pools: tuple[str, ...] = field(default=())
