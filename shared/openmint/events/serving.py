"""Cold loads and residency: soft state, published directly, rebuilt from engines at any time."""

from typing import ClassVar, Literal
from uuid import UUID

from pydantic import Field

from openmint.events.base import NO_TENANT, Command, Fact, OpenModel
from openmint.events.training import Cause
from openmint.identifiers import Digest, Name

LoadClass = Literal["interactive", "rollout", "evaluation", "prefetch"]

SERVE_POOL = "serve"
GATE_POOL = "gate-fp32"

RELEASE_DEADLINE_S = 0.05
"""Interest renewed for no longer than this is released: the waiter has its adapter, or gave up."""


class LoadRequested(Command):
    """Make a revision resident in a pool because somebody waits for it.

    Subject: openmint.load.requested.v1.<base>.<tenant>.<revision_id>. The same body on
    openmint.load.interest.v1.… (core NATS, every 2 s) renews the interest; lapsed interest is the cancellation.
    """

    area: ClassVar[str] = "load"
    verb: ClassVar[str] = "requested"

    base: Name
    pool: Name = SERVE_POOL
    tenant: Name
    policy: Name
    revision_id: UUID
    digest: Digest
    rank: int = Field(ge=1)
    adapter_bytes: int = Field(ge=0)
    load_class: LoadClass = "interactive"
    waiter: str = Field(description="Who waits: one lease per waiter, for example gateway process and revision")
    deadline_s: float = Field(default=60.0, gt=0, description="Seconds from now after which nobody waits any more")

    def load_subject(self) -> str:
        """The subject of the request itself."""
        return f"{self.event_type()}.{self.base}.{self.tenant}.{self.revision_id}"

    def interest_subject(self) -> str:
        """The subject that renews the interest."""
        return f"openmint.load.interest.v1.{self.base}.{self.tenant}.{self.revision_id}"


class ResidencyFact(Fact):
    """A fact about an adapter on one engine, told by the engine's host."""

    area: ClassVar[str] = "adapter"

    base: Name
    engine: Name
    boot_id: UUID
    sequence: int = Field(description="Rises with each residency fact of this boot")
    digest: Digest
    adapter_name: str = Field(description="The model name on that engine; unique per load, never used again")

    def subject_token(self) -> str:
        return self.engine


class AdapterResident(ResidencyFact):
    """The engine answers with this revision from now on."""

    verb: ClassVar[str] = "resident"

    url: str = Field(description="Where the engine listens")
    pools: list[Name] = Field(default_factory=lambda: [SERVE_POOL])
    stage_ms: float = 0.0
    attach_ms: float = 0.0


class AdapterGone(ResidencyFact):
    """The engine no longer has this load of the revision."""

    verb: ClassVar[str] = "gone"

    reason: Literal["evicted", "drained", "failed", "quarantined"] = "evicted"


class AdapterCondemned(Fact):
    """A revision gave non-finite answers alone, again and again, on a clean engine: the keeper quarantines it."""

    area: ClassVar[str] = "adapter"
    verb: ClassVar[str] = "condemned"

    base: Name
    engine: Name
    digest: Digest
    failures: int = Field(ge=1, description="Probes alone that gave no number")
    reason: str

    def subject_token(self) -> str:
        return self.engine


class LoadFailed(Fact):
    """A load was refused or could not be carried out; waiters answer their callers now."""

    area: ClassVar[str] = "load"
    verb: ClassVar[str] = "failed"

    base: Name
    pool: Name
    digest: Digest
    cause: Cause
    retry_after_s: float | None = Field(default=None, description="Present when a retry can help")

    def subject_token(self) -> str:
        return self.base


class EngineJoined(Fact):
    """An engine is up and can be given adapters."""

    area: ClassVar[str] = "engine"
    verb: ClassVar[str] = "joined"

    base: Name
    base_digest: Digest
    engine: Name
    boot_id: UUID
    pools: list[Name]
    url: str
    control_url: str
    build: str = Field(default="", description="vLLM version, dtype and plug-in version")

    def subject_token(self) -> str:
        return self.engine


class EngineLeft(Fact):
    """An engine is gone; its residents with it."""

    area: ClassVar[str] = "engine"
    verb: ClassVar[str] = "left"

    base: Name
    engine: Name
    boot_id: UUID
    reason: str = ""

    def subject_token(self) -> str:
        return self.engine


class ResidentAdapter(OpenModel):
    """One adapter on an engine, as the engine itself lists it."""

    digest: Digest
    adapter_name: str
    in_flight: int = 0
    adapter_bytes: int = 0


class EngineHeartbeat(Fact):
    """Every second on core NATS, from each engine host; the list itself is fetched when `list_version` is new."""

    area: ClassVar[str] = "engine"
    verb: ClassVar[str] = "heartbeat"

    base: Name
    base_digest: Digest
    engine: Name
    boot_id: UUID
    pools: list[Name]
    url: str
    control_url: str
    state: Literal["starting", "ready", "draining", "suspect"] = "ready"
    capacity: int = Field(description="Adapters it may hold")
    max_rank: int
    list_version: int
    list_hash: str
    last_command: int = Field(default=0, description="The last control command that it applied")
    residents: int = 0
    staged: int = 0
    running: int = 0
    waiting: int = 0
    max_running: int = Field(default=0, description="Sequences that one step takes at most; 0: not told")
    suspects: list[Digest] = Field(
        default_factory=list, description="Revisions that may have spoiled its answers and are still to be examined"
    )

    def subject_token(self) -> str:
        return self.engine


__all__ = [
    "GATE_POOL",
    "NO_TENANT",
    "RELEASE_DEADLINE_S",
    "SERVE_POOL",
    "AdapterCondemned",
    "AdapterGone",
    "AdapterResident",
    "EngineHeartbeat",
    "EngineJoined",
    "EngineLeft",
    "LoadClass",
    "LoadFailed",
    "LoadRequested",
    "ResidencyFact",
    "ResidentAdapter",
]
