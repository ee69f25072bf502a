"""What the core is told and what it answers: plain values, nothing of the bus, of HTTP or of a clock.

All times are seconds of the clock that the shell feeds in; deadlines are absolute on that clock.
"""

from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from openmint.engines.protocol import AttachRequest, AttachResult, EngineCondition, EngineState, Examination
from openmint.events.serving import LoadClass

CLASS_RANKS: dict[LoadClass, int] = {"interactive": 0, "rollout": 1, "evaluation": 2, "prefetch": 3}
"""Lower is served first."""


class LoadKey(NamedTuple):
    """What is coalesced: one revision in one pool (the base is the core's own)."""

    pool: str
    digest: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which revision somebody wants where; `label` is `tenant/policy`. A rank or size of 0 is not known."""

    key: LoadKey
    tenant: str
    label: str
    rank: int = 0
    adapter_bytes: int = 0


@dataclass(frozen=True, slots=True)
class LoadAsked:
    """A waiter asks for a load."""

    wanted: Wanted
    load_class: LoadClass
    waiter: str
    deadline_s: float


@dataclass(frozen=True, slots=True)
class InterestRenewed:
    """A waiter still waits (or still uses what it asked for); to a new leader it is the request itself."""

    wanted: Wanted
    load_class: LoadClass
    waiter: str
    deadline_s: float


@dataclass(frozen=True, slots=True)
class InterestReleased:
    """A waiter has what it waited for, or gave up: its lease need not run out."""

    key: LoadKey
    waiter: str


@dataclass(frozen=True, slots=True)
class AliasTurned:
    """An alias that is prefetched for points to `targets` now; `previous` stays warm for a while."""

    alias: str
    version: int
    targets: tuple[Wanted, ...]
    previous: tuple[Wanted, ...]


@dataclass(frozen=True, slots=True)
class EngineBeat:
    """A heartbeat: the engine is alive, and how its list may be told from the one that we know."""

    engine: str
    boot_id: UUID
    pools: tuple[str, ...]
    condition: EngineCondition
    capacity: int
    max_rank: int
    list_version: int
    last_command: int
    running: int
    waiting: int
    max_running: int = 0
    suspects: tuple[str, ...] = ()
    """Revisions that may have spoiled its answers and that it has not examined yet."""


@dataclass(frozen=True, slots=True)
class EngineLooked:
    """The answer to FetchState: a consistent look at an engine, asked for at `asked_s`."""

    command: int
    state: EngineState
    asked_s: float


@dataclass(frozen=True, slots=True)
class EngineGone:
    """The engine's host says that this boot is over."""

    engine: str
    boot_id: UUID
    reason: str


@dataclass(frozen=True, slots=True)
class StageDone:
    """The revision lies staged on the engine's machine."""

    engine: str
    boot_id: UUID
    command: int
    digest: str


@dataclass(frozen=True, slots=True)
class AttachDone:
    """A batch was attached; each revision has its own outcome."""

    engine: str
    boot_id: UUID
    command: int
    results: tuple[AttachResult, ...]


@dataclass(frozen=True, slots=True)
class RemoveDone:
    """The adapter is off the engine, or was still in use and is admitted again (`removed` false)."""

    engine: str
    boot_id: UUID
    command: int
    digest: str
    removed: bool


@dataclass(frozen=True, slots=True)
class RestartDone:
    """The engine's host has begun to restart it."""

    engine: str
    boot_id: UUID
    command: int


@dataclass(frozen=True, slots=True)
class ExamineDone:
    """A suspect was probed alone."""

    engine: str
    boot_id: UUID
    command: int
    found: Examination


@dataclass(frozen=True, slots=True)
class CommandFailed:
    """A command could not be carried out. `code` is one of openmint.errors: `bad_adapter` is final for everybody,
    `store_unavailable` is nobody's fault, everything else is held against the engine."""

    engine: str
    boot_id: UUID
    command: int
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Incoming = (
    LoadAsked | InterestRenewed | InterestReleased | AliasTurned | EngineBeat | EngineLooked | EngineGone
    | StageDone | AttachDone | RemoveDone | RestartDone | ExamineDone | CommandFailed | Tick
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stage:
    """Fetch, verify and repack a revision on the engine's machine."""

    engine: str
    boot_id: UUID
    command: int
    digest: str


@dataclass(frozen=True, slots=True)
class Attach:
    """Make everything that is staged resident, in one gap between steps."""

    engine: str
    boot_id: UUID
    command: int
    requests: tuple[AttachRequest, ...]


@dataclass(frozen=True, slots=True)
class Remove:
    """Take an adapter off the engine once nothing of it is in flight."""

    engine: str
    boot_id: UUID
    command: int
    digest: str
    adapter_name: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Unstage:
    """Drop a staged copy."""

    engine: str
    boot_id: UUID
    command: int
    digest: str


@dataclass(frozen=True, slots=True)
class FetchState:
    """Look at the engine and bring the answer as EngineLooked."""

    engine: str
    boot_id: UUID
    command: int


@dataclass(frozen=True, slots=True)
class Restart:
    """Have a suspect engine start afresh."""

    engine: str
    boot_id: UUID
    command: int
    reason: str


@dataclass(frozen=True, slots=True)
class Examine:
    """Have a staged suspect probed alone on a fresh engine."""

    engine: str
    boot_id: UUID
    command: int
    request: AttachRequest


@dataclass(frozen=True, slots=True)
class Condemn:
    """Tell that a revision was found bad beyond doubt."""

    engine: str
    digest: str
    failures: int
    reason: str


@dataclass(frozen=True, slots=True)
class AnswerFailed:
    """Tell the waiters of a load that it will not be; `retry_after_s` is set when a retry can help."""

    wanted: Wanted
    code: str
    detail: str
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class Noted:
    """Something happened that logs and metrics should show; the shell only writes it down."""

    happening: str
    fields: dict[str, str | int | float | bool] = field(default_factory=dict[str, str | int | float | bool])


Command = Stage | Attach | Remove | Unstage | FetchState | Restart | Examine | AnswerFailed | Condemn | Noted
