"""A stream of server-sent events, split beside the copy: first token, count, usage, error; two fields rewritten.

The bytes of an event pass as they are. Only `model` is written back as the caller said it, and `system_fingerprint`
put beside it, by one bytes replacement per event.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import orjson

from openmint.errors import EngineFailed
from openmint_gateway.problems import JsonObject

MAX_EVENT_BYTES = 1024 * 1024
"""No engine sends an event this large; without a bound one broken stream could fill the gateway's memory."""

_END = b"\n\n"
_DONE = b"data: [DONE]"


@dataclass(slots=True)
class StreamTally:
    """What is learned of a stream while it passes."""

    events: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    is_done: bool = False
    error: str = ""
    finish_reasons: list[str] = field(default_factory=list[str])


class EventSplitter:
    """Feed it what the engine sends; it gives whole events, ready for the caller."""

    def __init__(self, engine_model: str, caller_model: str, fingerprint: str, *, wants_usage: bool) -> None:
        self.tally = StreamTally()
        self._caller_model = caller_model
        self._fingerprint = fingerprint
        self._wants_usage = wants_usage
        self._marker = b'"model":' + orjson.dumps(engine_model)
        self._replacement = (
            b'"model":' + orjson.dumps(caller_model) + b',"system_fingerprint":' + orjson.dumps(fingerprint)
        )
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """The events that are complete now, rewritten; empty while none is."""
        self._rest += data
        if _END not in self._rest:
            if len(self._rest) > MAX_EVENT_BYTES:
                raise EngineFailed("the engine sent an event without an end")
            return b""
        *events, self._rest = self._rest.split(_END)
        return b"".join(self._rewritten(events))

    def _rewritten(self, events: list[bytes]) -> Iterator[bytes]:
        for event in events:
            if event.startswith(_DONE):
                self.tally.is_done = True
                yield event + _END
            elif not event.startswith(b"data:"):
                yield event + _END
            else:
                yield self._rewrite(event)

    def _rewrite(self, event: bytes) -> bytes:
        tally = self.tally
        if b'"usage":{' in event or b'"finish_reason":"' in event or b'"error"' in event:
            body = _read(event)
            if self._note(body):
                return b""
        tally.events += 1
        if self._marker in event and b'"system_fingerprint"' not in event:
            return event.replace(self._marker, self._replacement, 1) + _END
        return self._rewrite_slowly(event)

    def _note(self, body: JsonObject) -> bool:
        """Remember what the event says; True when it is ours alone and not the caller's."""
        tally = self.tally
        error = body.get("error")
        if isinstance(error, dict):
            tally.error = str(error.get("message", "the engine reported an error"))[:500]
        usage = body.get("usage")
        if isinstance(usage, dict):
            tally.prompt_tokens = int(usage.get("prompt_tokens") or 0)
            tally.completion_tokens = int(usage.get("completion_tokens") or 0)
        for choice in body.get("choices") or []:
            if choice.get("finish_reason"):
                tally.finish_reasons.append(str(choice["finish_reason"]))
        return isinstance(usage, dict) and not body.get("choices") and not self._wants_usage

    def _rewrite_slowly(self, event: bytes) -> bytes:
        body = _read(event)
        if "model" not in body:
            return event + _END
        body["model"] = self._caller_model
        body["system_fingerprint"] = self._fingerprint
        return b"data: " + orjson.dumps(body) + _END


def _read(event: bytes) -> JsonObject:
    try:
        body = orjson.loads(event[5:])
    except orjson.JSONDecodeError as error:
        raise EngineFailed("the engine sent an event that is not JSON") from error
    if not isinstance(body, dict):
        raise EngineFailed("the engine sent an event that is not an object")
    return body
