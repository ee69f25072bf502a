"""Messages as values: CloudEvents 1.0 in binary mode, and strict reading of what comes in.

The body is the plain JSON of the event; its attributes ride in headers. A bare JSON body without any header is a valid
command: its id is then `<stream>-<seq>`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Generic, TypeVar

from pydantic import ValidationError

from openmint.bus.strict_json import parse_object
from openmint.errors import BadEvent
from openmint.events import Command, Event, Fact, LoadRequested
from openmint.events.registry import find_event_class
from openmint.identifiers import check_name, new_id
from openmint.tracing import trace_headers

MSG_ID = "Nats-Msg-Id"
TYPE_TOKENS = 4
"""`openmint.<area>.<verb>.v<N>`."""

E = TypeVar("E", bound=Event)


@dataclass(frozen=True, slots=True)
class RawMessage:
    """A message as it came, read or unreadable. Its subject, unlike its body, was checked by the server."""

    subject: str
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    stream: str = ""
    seq: int = 0
    deliveries: int = 1

    @property
    def event_id(self) -> str:
        """The `ce-id`, or `<stream>-<seq>` of a bare message."""
        return self.headers.get("ce-id") or f"{self.stream}-{self.seq}"

    @property
    def tenant(self) -> str:
        """Whose message it is. Raises: BadEvent when the subject names no tenant."""
        return tenant_of_subject(self.subject)

    @property
    def token(self) -> str:
        """The last token of the subject."""
        return self.subject.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Received(Generic[E]):
    """An event and the message that brought it."""

    event: E
    raw: RawMessage

    @property
    def event_id(self) -> str:
        """By which a second delivery is recognised."""
        return self.raw.event_id

    @property
    def tenant(self) -> str:
        """The tenant of the subject."""
        return self.raw.tenant

    @property
    def token(self) -> str:
        """The last token of the subject."""
        return self.raw.token


def tenant_of_subject(subject: str) -> str:
    """The tenant that a subject names: the only word on whose message it is. Raises: BadEvent."""
    tokens = subject.split(".")
    is_load = tokens[1:2] == ["load"] and tokens[2:3] != ["failed"]
    position = TYPE_TOKENS + (1 if is_load else 0)
    if len(tokens) != position + 2:
        raise BadEvent(f"subject {subject[:200]!r} has {len(tokens)} tokens, {position + 2} are expected")
    return check_name(tokens[position], "tenant in the subject")


def decode(headers: Mapping[str, str] | None, subject: str, data: bytes, stream: str, seq: int) -> Received[Event]:
    """Read a message as the event that its subject names.

    Raises: BadEvent (BadName for a malformed tenant), naming what is wrong and, in `field`, where.
    """
    return decode_raw(RawMessage(subject, data, dict(headers or {}), stream, seq))


def decode_raw(raw: RawMessage) -> Received[Event]:
    """As `decode`, of a message that is a value already."""
    event_type = ".".join(raw.subject.split(".")[:TYPE_TOKENS])
    event_class = find_event_class(event_type)
    if event_class is None:
        raise BadEvent(f"no event is published on {raw.subject[:200]!r}")
    said = raw.headers.get("ce-type")
    if said and said != event_type:
        raise BadEvent(f"header ce-type says {said[:100]!r}, the subject says {event_type!r}")
    tenant = raw.tenant
    check_name(raw.token, "last token of the subject")
    body = parse_object(raw.data)
    event = validate(event_class, raw.data)
    claimed = body.get("tenant")
    if claimed is not None and claimed != tenant:
        raise BadEvent(f"the body says tenant {str(claimed)[:80]!r}, the subject says {tenant!r}", field="tenant")
    if isinstance(event, LoadRequested) and raw.subject.split(".")[TYPE_TOKENS] != event.base:
        raise BadEvent(f"the body says base {event.base!r}, the subject says otherwise", field="base")
    return Received(event, raw)


def validate(event_class: type[E], data: bytes) -> E:
    """`data` as this event. Raises: BadEvent with the first wrong field and how many there are."""
    try:
        return event_class.model_validate_json(data)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        first = problems[0]
        place = ".".join(str(part) for part in first["loc"]) or None
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        reason = first["msg"].removeprefix("Value error, ")
        raise BadEvent(f"{place}: {reason}{more}" if place else f"{reason}{more}", field=place) from error


def cloud_event_headers(fact: Fact, source: str) -> dict[str, str]:
    """The headers of a fact, among them the id by which the bus drops a second copy."""
    headers = _attributes(str(fact.event_id), fact.event_type(), source, fact.occurred_at)
    if fact.causation_id is not None:
        headers["ce-causationid"] = fact.causation_id
    return headers


def command_headers(command: Command, source: str) -> dict[str, str]:
    """The headers of a command that we publish ourselves, with a new id."""
    return _attributes(str(new_id()), command.event_type(), source, datetime.now(UTC))


def _attributes(event_id: str, event_type: str, source: str, time: datetime) -> dict[str, str]:
    return {
        "ce-specversion": "1.0",
        "ce-id": event_id,
        "ce-type": event_type,
        "ce-source": f"openmint/{source}",
        "ce-time": time.astimezone(UTC).isoformat(),
        "content-type": "application/json",
        MSG_ID: event_id,
        **trace_headers(),
    }


def encode(event: Event) -> bytes:
    """The body of an event."""
    return event.model_dump_json(exclude_none=isinstance(event, Command)).encode()
