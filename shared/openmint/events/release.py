"""Facts of a revision's life, from export to retirement, and of aliases."""

from typing import ClassVar
from uuid import UUID

from pydantic import Field

from openmint.events.base import Fact, OpenModel
from openmint.events.training import Cause
from openmint.identifiers import Digest, Name


class RevisionFact(Fact):
    """A fact about one revision."""

    area: ClassVar[str] = "revision"

    revision_id: UUID
    job_id: UUID | None = None
    policy: Name
    base: Name
    step: int = 0

    def subject_token(self) -> str:
        return str(self.revision_id)


class RevisionExported(RevisionFact):
    """The revision has its digest and number, and its files are complete in the store."""

    verb: ClassVar[str] = "exported"

    digest: Digest
    number: int
    adapter_bytes: int
    export_ms: float | None = None


class RevisionFailed(RevisionFact):
    """The export did not succeed."""

    verb: ClassVar[str] = "failed"

    cause: Cause


class RevisionEligible(RevisionFact):
    """The revision passed its gate (or a person waived it): an alias may move to it."""

    verb: ClassVar[str] = "eligible"

    digest: Digest
    number: int
    evaluation_id: UUID | None = None
    summary: str = Field(default="", description="The verdict in plain words")
    waived_by: str | None = None


class RevisionRejected(RevisionFact):
    """The revision failed its gate."""

    verb: ClassVar[str] = "rejected"

    digest: Digest
    number: int
    evaluation_id: UUID | None = None
    summary: str = Field(default="", description="The verdict in plain words")


class RevisionQuarantined(RevisionFact):
    """The revision was found bad; an alias on it answers 503."""

    verb: ClassVar[str] = "quarantined"

    digest: Digest
    number: int
    reason: str


class RevisionRetired(RevisionFact):
    """The revision no longer serves; its bytes may go."""

    verb: ClassVar[str] = "retired"

    digest: Digest | None = None
    number: int | None = None


class AliasTarget(OpenModel):
    """One revision behind an alias, with its share of the requests."""

    revision_id: UUID
    digest: Digest
    number: int
    weight: float = 1.0


class AliasMoved(Fact):
    """An alias points somewhere else from now on (or is frozen or thawed at the same place)."""

    area: ClassVar[str] = "alias"
    verb: ClassVar[str] = "moved"

    policy_id: UUID
    policy: Name
    base: Name
    alias: Name
    alias_version: int = Field(description="Rises by one with each move; only higher versions apply")
    targets: list[AliasTarget]
    previous: list[AliasTarget] = Field(default_factory=list)
    frozen: bool = False
    actor: str = ""
    reason: str = ""

    def subject_token(self) -> str:
        return str(self.policy_id)
