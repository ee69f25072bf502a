"""What every event has: its subject, its version, and the rules for unknown fields.

The body on the bus is the plain JSON of the model; the CloudEvents attributes ride in headers (`openmint.bus`).
"""

from datetime import UTC, datetime
from typing import ClassVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

from openmint.identifiers import Name, new_id

SUBJECT_ROOT = "openmint"
NO_TENANT = "_"
"""Stands where a subject needs a tenant and the event has none (an engine joined)."""


class Event(BaseModel):
    """A message on the bus. Use `Command` or `Fact`."""

    area: ClassVar[str]
    verb: ClassVar[str]
    version: ClassVar[int] = 1

    @classmethod
    def event_type(cls) -> str:
        """`openmint.job.accepted.v1`: the `ce-type` and the head of the subject."""
        return f"{SUBJECT_ROOT}.{cls.area}.{cls.verb}.v{cls.version}"

    @classmethod
    def subject_filter(cls) -> str:
        """The subject pattern that matches every message of this class."""
        return f"{cls.event_type()}.>"


class Command(Event):
    """A request from outside. Unknown fields are refused, so that `learning_rat` fails; `x_*` may carry anything."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @model_validator(mode="after")
    def _refuse_unknown_fields(self) -> "Command":
        for name in self.model_extra or {}:
            if not name.startswith("x_"):
                raise ValueError(f"unknown field {name!r}; fields of your own start with x_")
        return self

    def subject(self, tenant: str, token: str) -> str:
        """Where this command is published: `<type>.<tenant>.<token>`."""
        return f"{self.event_type()}.{tenant}.{token}"


class Fact(Event):
    """Something that happened. Consumers ignore fields that they do not know."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    event_id: UUID = Field(default_factory=new_id, description="Names this occurrence; equal on every delivery")
    occurred_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    causation_id: str | None = Field(default=None, description="The event_id (or ce-id) that led to this one")
    tenant: Name = Field(default=NO_TENANT, description="Whose it is; _ for facts about engines")

    def subject_token(self) -> str:
        """The last token of the subject: the id of what the fact is about."""
        raise TypeError(f"{type(self).__name__} names no subject token")

    def subject(self) -> str:
        """Where this fact is published: `<type>.<tenant>.<token>`."""
        return f"{self.event_type()}.{self.tenant}.{self.subject_token()}"


class StrictModel(BaseModel):
    """A part of a command: unknown fields are refused here too, except `x_*`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @model_validator(mode="after")
    def _refuse_unknown_fields(self) -> "StrictModel":
        for name in self.model_extra or {}:
            if not name.startswith("x_"):
                raise ValueError(f"unknown field {name!r}; fields of your own start with x_")
        return self


class OpenModel(BaseModel):
    """A part of a fact: unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)
