"""The rows of the catalogue as values. The files beside this one read and write them."""

import json
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import asyncpg

from openmint.events import AliasTarget, Cause
from openmint.identifiers import digest_from_bytes

JsonObject = dict[str, Any]


class JobState(StrEnum):
    """Where a job is in its life."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_ended(self) -> bool:
        """True when nothing will ever change again."""
        return self in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)


class RevisionState(StrEnum):
    """Where a revision is in its life."""

    PENDING = "pending"
    EXPORTING = "exporting"
    EXPORTED = "exported"
    EVALUATING = "evaluating"
    ELIGIBLE = "eligible"
    REJECTED = "rejected"
    QUARANTINED = "quarantined"
    RETIRED = "retired"
    FAILED = "failed"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose things they are; `weight` is its share when tenants compete."""

    tenant: str
    weight: float


@dataclass(frozen=True, slots=True)
class Base:
    """A base model; `modules` maps a module path to (out, in) features."""

    name: str
    digest: str
    locator: str
    modules: dict[str, tuple[int, int]]
    config: JsonObject


@dataclass(frozen=True, slots=True)
class Policy:
    """A durable, named record over one base model."""

    policy_id: UUID
    tenant: str
    name: str
    base: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Job:
    """One request to train, and how far it is. `step` is that of the last checkpoint."""

    job_id: UUID
    tenant: str
    policy_id: UUID
    policy: str
    base: str
    spec: JsonObject
    idempotency_key: str | None
    request_id: str
    request_hash: bytes
    state: JobState
    fence: int
    tries: int
    owner: str | None
    lease_until: datetime | None
    cancel_requested: bool
    cancelled_by: str
    progress: JsonObject | None
    step: int
    steps: int
    tokens: int
    final_loss: float | None
    cause: Cause | None
    hint_event_id: UUID
    created_at: datetime
    started_at: datetime | None
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint file in the store."""

    checkpoint_id: UUID
    job_id: UUID
    fence: int
    step: int
    key: str
    sha256: bytes
    checkpoint_bytes: int
    hint_event_id: UUID
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Revision:
    """One immutable adapter of a policy; digest and number are given when its export commits."""

    revision_id: UUID
    tenant: str
    policy_id: UUID
    policy: str
    base: str
    job_id: UUID | None
    checkpoint_id: UUID | None
    step: int
    state: RevisionState
    fence: int
    tries: int
    owner: str | None
    lease_until: datetime | None
    number: int | None
    digest: str | None
    rank: int | None
    adapter_bytes: int | None
    export_ms: float | None
    source: str
    quarantined_from: RevisionState | None
    reason: str
    waived_by: str | None
    cause: Cause | None
    hint_event_id: UUID
    created_at: datetime
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class Alias:
    """A movable name in a policy."""

    policy_id: UUID
    alias: str
    revision_id: UUID
    digest: str
    number: int
    version: int
    frozen: bool
    moved_at: datetime


@dataclass(frozen=True, slots=True)
class AliasMove:
    """What a move did. `changed` is False when the alias was already there; then no fact goes out."""

    policy_id: UUID
    policy: str
    alias: str
    alias_version: int
    target: AliasTarget
    previous: AliasTarget | None
    frozen: bool
    changed: bool


@dataclass(frozen=True, slots=True)
class AliasHistoryEntry:
    """One move in an alias's past."""

    version: int
    revision_id: UUID
    number: int
    digest: str
    previous_revision_id: UUID | None
    frozen: bool
    actor: str
    reason: str
    moved_at: datetime


@dataclass(frozen=True, slots=True)
class EvaluationDraft:
    """An evaluation about to be recorded. `rests_on` names what its scores rest on: revision, base, data, prompts."""

    evaluation_id: UUID
    suite: str
    passed: bool
    summary: str
    scores: JsonObject
    rests_on: JsonObject
    report_key: str | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One recorded evaluation of a revision."""

    evaluation_id: UUID
    revision_id: UUID
    fence: int
    suite: str
    passed: bool
    summary: str
    scores: JsonObject
    rests_on: JsonObject
    report_key: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is kept of an API key; the secret itself is not."""

    key_id: str
    tenant: str
    secret_hash: bytes
    scopes: frozenset[str]
    label: str
    expires_at: datetime | None
    revoked_at: datetime | None
    created_at: datetime
    is_live: bool
    """Neither revoked nor expired, by the database's clock at the time of reading."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows that a tenant has put into the store."""

    tenant: str
    digest: str
    rows: int
    bytes: int
    key: str
    created_at: datetime


def dump_json(value: object) -> str:
    """Text for a jsonb parameter; NaN and infinity, which JSON can't hold, raise ValueError."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def load_json(value: str | None) -> Any:
    """What a jsonb column holds, None for null."""
    return None if value is None else json.loads(value)


def fields_of(row: asyncpg.Record, **changes: Any) -> dict[str, Any]:
    """The row's columns by name, as a dataclass takes them; `changes` replaces some."""
    return {**row, **changes}


JOB_COLUMNS = (
    "j.job_id, j.tenant, j.policy_id, p.name as policy, j.base, j.spec, j.idempotency_key, j.request_id,"
    " j.request_hash, j.state, j.fence, j.tries, j.owner, j.lease_until, j.cancel_requested, j.cancelled_by,"
    " j.progress, j.step, j.steps, j.tokens, j.final_loss, j.cause, j.hint_event_id, j.created_at, j.started_at,"
    " j.changed_at"
)
"""Of `jobs j` joined with `policies p`."""

REVISION_COLUMNS = (
    "r.revision_id, r.tenant, r.policy_id, p.name as policy, r.base, r.job_id, r.checkpoint_id, r.step, r.state,"
    " r.fence, r.tries, r.owner, r.lease_until, r.number, r.digest, r.rank, r.adapter_bytes, r.export_ms, r.source,"
    " r.quarantined_from, r.reason, r.waived_by, r.cause, r.hint_event_id, r.created_at, r.changed_at"
)
"""Of `revisions r` joined with `policies p`."""


def job_from(row: asyncpg.Record) -> Job:
    """The job in a row of JOB_COLUMNS."""
    fields = fields_of(row)
    fields["spec"] = load_json(fields["spec"])
    fields["progress"] = load_json(fields["progress"])
    fields["cause"] = _cause_from(fields["cause"])
    fields["state"] = JobState(fields["state"])
    return Job(**fields)


def revision_from(row: asyncpg.Record) -> Revision:
    """The revision in a row of REVISION_COLUMNS."""
    fields = fields_of(row)
    fields["state"] = RevisionState(fields["state"])
    if fields["quarantined_from"] is not None:
        fields["quarantined_from"] = RevisionState(fields["quarantined_from"])
    if fields["digest"] is not None:
        fields["digest"] = digest_from_bytes(fields["digest"])
    fields["cause"] = _cause_from(fields["cause"])
    return Revision(**fields)


def _cause_from(text: str | None) -> Cause | None:
    return None if text is None else Cause.model_validate_json(text)
