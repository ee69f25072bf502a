"""What the gateway answers, as values for its callers. Fields that a newer gateway adds are ignored."""

from datetime import datetime
from typing import Generic, Literal, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, JsonValue

from openmint.events import Cause

JsonObject = dict[str, JsonValue]

Item = TypeVar("Item")

JOB_ENDS = frozenset({"completed", "failed", "cancelled"})
REVISION_ENDS = frozenset({"eligible", "rejected", "quarantined", "retired", "failed", "deleted"})


class Answer(BaseModel):
    """A value that came from the gateway."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Page(Answer, Generic[Item]):
    """One page of a list; `next` is the `after` of the page that follows."""

    items: list[Item]
    next: str | None = None


class PolicyAnswer(Answer):
    """A policy."""

    policy_id: UUID
    tenant: str
    name: str
    base: str
    created_at: datetime


class RevisionAnswer(Answer):
    """One immutable adapter of a policy."""

    revision_id: UUID
    policy: str
    base: str
    number: int | None = None
    digest: str | None = None
    step: int = 0
    state: str
    rank: int | None = None
    adapter_bytes: int | None = None
    job_id: UUID | None = None
    source: str = ""
    reason: str = ""
    waived_by: str | None = None
    cause: Cause | None = None
    created_at: datetime
    changed_at: datetime

    @property
    def is_decided(self) -> bool:
        """True when the gate has spoken, or never will."""
        return self.state in REVISION_ENDS


class JobAnswer(Answer):
    """One request to train, and how far it is."""

    job_id: UUID
    policy: str
    base: str
    state: str
    step: int = 0
    steps: int = 0
    tokens: int = 0
    final_loss: float | None = None
    progress: JsonObject | None = None
    cause: Cause | None = None
    cancel_requested: bool = False
    idempotency_key: str | None = None
    spec: JsonObject = {}
    created_at: datetime
    started_at: datetime | None = None
    changed_at: datetime
    revisions: list[RevisionAnswer] = []

    @property
    def is_ended(self) -> bool:
        """True when nothing about it will change again."""
        return self.state in JOB_ENDS


class AliasAnswer(Answer):
    """Where an alias points."""

    alias: str
    revision_id: UUID
    digest: str
    number: int
    version: int
    frozen: bool
    moved_at: datetime


class AliasHistoryAnswer(Answer):
    """One move in an alias's past."""

    version: int
    number: int
    digest: str
    frozen: bool
    actor: str
    reason: str
    moved_at: datetime


class MoveAnswer(Answer):
    """What a promotion, rollback, freeze or thaw did."""

    policy: str
    alias: str
    alias_version: int
    digest: str
    number: int
    previous_digest: str | None = None
    previous_number: int | None = None
    frozen: bool = False
    changed: bool = True
    visible: bool = False


class EvaluationAnswer(Answer):
    """One recorded evaluation of a revision."""

    evaluation_id: UUID
    revision_id: UUID
    suite: str
    passed: bool
    summary: str
    scores: JsonObject
    rests_on: JsonObject
    report_key: str | None = None
    created_at: datetime


class DatasetAnswer(Answer):
    """Rows that were put."""

    digest: str
    rows: int
    bytes: int
    created_at: datetime


class BaseAnswer(Answer):
    """A base model and the linears that an adapter may sit on."""

    name: str
    digest: str
    targets: list[str]


class KeyAnswer(Answer):
    """What may be known of an API key; `key` is its text, told once."""

    key_id: str
    tenant: str
    scopes: list[str]
    label: str = ""
    is_live: bool = True
    expires_at: datetime | None = None
    created_at: datetime
    key: str | None = None


class Message(BaseModel):
    """One message of a chat."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class GeneratedAnswer(Answer):
    """What a policy answered, and which revision it was."""

    text: str
    model: str
    revision: str
    """The digest, or `base`."""
    request_id: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
