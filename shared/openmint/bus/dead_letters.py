"""Messages that could not be read or used up their tries: kept with their error, shown, and replayed when mended.

A dead letter lies in stream DEAD on `openmint.dead.<what follows openmint. in its subject>`, with its headers and body;
what openmint adds are the `openmint-dead-*` headers.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from nats.errors import Error as NatsError
from nats.js.api import RawStreamMsg
from nats.js.errors import APIError
from nats.js.errors import NotFoundError as NoSuchMessage

from openmint.bus.connection import Bus
from openmint.bus.messages import MSG_ID, RawMessage
from openmint.bus.streams import DEAD, DEAD_ROOT
from openmint.errors import BadRequest, BusUnavailable, NotFound, OpenmintError
from openmint.events.base import SUBJECT_ROOT
from openmint.identifiers import new_id

PREFIX = "openmint-dead-"
LONGEST_DETAIL = 1000
LONGEST_BODY = 896 * 1024
"""Room for headers under the bus's limit; what is cut off is said in a header."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter. `error_code` is of openmint.errors; `field` is what was wrong, if one thing was."""

    seq: int
    subject: str
    event_id: str
    stream: str
    stream_seq: int
    consumer: str
    deliveries: int
    error_code: str
    detail: str
    field: str | None
    died_at: datetime | None
    is_truncated: bool
    headers: Mapping[str, str]
    data: bytes


async def bury(bus: Bus, raw: RawMessage, error: BaseException, *, consumer: str, key: str | None = None) -> None:
    """Put a message into DEAD; a second burial of the same message changes nothing. Raises: BusUnavailable."""
    headers = {name: value for name, value in raw.headers.items() if name != MSG_ID and not name.startswith("Nats-")}
    headers |= {
        MSG_ID: key or _burial_id(raw),
        "ce-id": raw.event_id,
        f"{PREFIX}subject": raw.subject,
        f"{PREFIX}stream": raw.stream,
        f"{PREFIX}seq": str(raw.seq),
        f"{PREFIX}consumer": consumer,
        f"{PREFIX}deliveries": str(raw.deliveries),
        f"{PREFIX}code": error.code if isinstance(error, OpenmintError) else "internal",
        # Headers are lines; a message's author must not be able to write more of them.
        f"{PREFIX}detail": json.dumps(_words(error)[:LONGEST_DETAIL]),
    }
    if isinstance(error, OpenmintError) and error.field:
        headers[f"{PREFIX}field"] = json.dumps(error.field[:200])
    data = raw.data
    if len(data) > LONGEST_BODY:
        headers[f"{PREFIX}truncated"] = str(len(data))
        data = data[:LONGEST_BODY]
    await bus.publish_raw(dead_subject(raw.subject), data, headers)


def dead_subject(subject: str) -> str:
    """Where the dead letters of a subject lie."""
    return f"{DEAD_ROOT}.{subject.removeprefix(f'{SUBJECT_ROOT}.')}"


async def list_dead(bus: Bus, *, after: int = 0, limit: int = 50, subject: str = f"{DEAD_ROOT}.>") -> list[DeadLetter]:
    """Dead letters from the oldest, `limit` at most, beginning behind sequence `after`. Raises: BusUnavailable."""
    found: list[DeadLetter] = []
    seq = after + 1
    while len(found) < limit:
        try:
            message = await bus.js.get_msg(DEAD.name, seq=seq, subject=subject, next=True)
        except NoSuchMessage:
            break
        except (APIError, NatsError, TimeoutError) as error:
            raise BusUnavailable(f"can't read dead letters: {error!r}", retry_after_s=1.0) from error
        found.append(_letter(message))
        seq = found[-1].seq + 1
    return found


async def show_dead(bus: Bus, seq: int) -> DeadLetter:
    """One dead letter. Raises: NotFound, BusUnavailable."""
    try:
        return _letter(await bus.js.get_msg(DEAD.name, seq=seq))
    except NoSuchMessage as error:
        raise NotFound(f"there is no dead letter {seq}") from error
    except (APIError, NatsError, TimeoutError) as error:
        raise BusUnavailable(f"can't read dead letter {seq}: {error!r}", retry_after_s=1.0) from error


async def replay_dead(bus: Bus, seq: int, body: bytes | None = None) -> int:
    """Publish a dead letter again where it came from, with `body` in place of its own if given; returns the sequence.

    It keeps its `ce-id`, so that whoever handled it does not do so twice, and gets a new message id, so that the stream
    takes it. The letter stays until it ages out. Raises: NotFound, BadRequest, BusUnavailable, TooLarge.
    """
    letter = await show_dead(bus, seq)
    if body is None and letter.is_truncated:
        raise BadRequest(f"dead letter {seq} kept only the beginning of its body: give the whole body", field="body")
    headers = {name: value for name, value in letter.headers.items() if not name.startswith(PREFIX)}
    headers |= {MSG_ID: str(new_id()), "ce-id": letter.event_id}
    ack = await bus.publish_raw(letter.subject, letter.data if body is None else body, headers)
    return ack.seq or 0


def _letter(message: RawStreamMsg) -> DeadLetter:
    headers = dict(message.headers or {})
    field = headers.get(f"{PREFIX}field")
    return DeadLetter(
        seq=message.seq or 0,
        subject=headers.get(f"{PREFIX}subject", message.subject or ""),
        event_id=headers.get("ce-id", ""),
        stream=headers.get(f"{PREFIX}stream", ""),
        stream_seq=int(headers.get(f"{PREFIX}seq", 0)),
        consumer=headers.get(f"{PREFIX}consumer", ""),
        deliveries=int(headers.get(f"{PREFIX}deliveries", 1)),
        error_code=headers.get(f"{PREFIX}code", "internal"),
        detail=json.loads(headers.get(f"{PREFIX}detail", '""')),
        field=json.loads(field) if field else None,
        died_at=message.time if isinstance(message.time, datetime) else None,
        is_truncated=f"{PREFIX}truncated" in headers,
        headers=headers,
        data=message.data or b"",
    )


def _burial_id(raw: RawMessage) -> str:
    # With its content in it: a stream that was made anew gives the same numbers to other messages.
    return f"{raw.stream}-{raw.seq}-{hashlib.sha256(raw.data).hexdigest()[:16]}"


def _words(error: BaseException) -> str:
    return error.detail if isinstance(error, OpenmintError) else f"{type(error).__name__}: {error}"
