"""One completion over HTTP, read as a user's client would, with as little work of its own as possible."""

import json
import time
from collections.abc import Mapping
from typing import Any, cast

import aiohttp

from load.clients.records import Call, Outcome

REVISION_HEADER = "x-openmint-revision"
TIMEOUT_S = 300.0
MAX_ERROR = 300

_DATA = b"data: "
_DONE = b"data: [DONE]"
_ERROR = b'data: {"error"'
_USAGE = b'"completion_tokens":'


def make_session() -> aiohttp.ClientSession:
    """A session without a limit on connections: what waits must wait in the server that is measured."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))


async def complete(
    session: aiohttp.ClientSession,
    url: str,
    model: str,
    call: Call,
    *,
    headers: Mapping[str, str],
    scheduled_s: float | None = None,
    expected_revision: str = "",
    engine: str = "",
) -> Outcome:
    """Ask `url`/v1/completions. With `expected_revision` an answer of another one is an error."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": call.prompt if isinstance(call.prompt, str) else list(call.prompt),
        "max_tokens": call.max_tokens,
        "min_tokens": call.max_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": call.stream,
    }
    if call.stream:
        body["stream_options"] = {"include_usage": True}
    sent_s = time.monotonic()
    reading = _Reading()
    status, retry_after_s, revision, error = 0, None, "", ""
    try:
        async with session.post(f"{url}/v1/completions", json=body, headers=headers) as response:
            status = response.status
            retry_after_s = _seconds(response.headers.get("retry-after"))
            revision = response.headers.get(REVISION_HEADER, "")
            if status != 200:
                error = _error_of(await response.read()) or f"status {status}"
            elif call.stream:
                async for line in response.content:
                    reading.take(line)
                error = reading.ending()
            else:
                reading.take_whole(await response.read())
    except (aiohttp.ClientError, TimeoutError, ValueError) as fault:
        error = f"lost: {type(fault).__name__} {fault}"[:MAX_ERROR]
    ended_s = time.monotonic()
    if not error and expected_revision and revision != expected_revision:
        error = f"wrong revision: {revision or 'none'} in place of {expected_revision}"
    times = tuple(reading.times)
    return Outcome(
        call,
        sent_s if scheduled_s is None else scheduled_s,
        sent_s,
        times[0] if times else None,
        ended_s,
        times,
        reading.tokens,
        status,
        retry_after_s,
        revision,
        error,
        engine,
    )


class _Reading:
    """The events of one answer."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.tokens = 0
        self._error = ""
        self._is_done = False

    def take(self, line: bytes) -> None:
        if not line.startswith(_DATA):
            return
        if line.startswith(_DONE):
            self._is_done = True
        elif line.startswith(_ERROR):
            self._error = _error_of(line[len(_DATA) :])
        elif _USAGE in line:
            self.tokens = int(json.loads(line[len(_DATA) :])["usage"]["completion_tokens"])
        else:
            self.times.append(time.monotonic())

    def take_whole(self, body: bytes) -> None:
        self.times.append(time.monotonic())
        self.tokens = int(json.loads(body)["usage"]["completion_tokens"])

    def ending(self) -> str:
        """What is wrong with the stream as a whole."""
        if self._error:
            return self._error
        return "" if self._is_done and self.times else "lost: the stream ended early"


def _error_of(body: bytes) -> str:
    """`code: message` of an error in OpenAI's form."""
    try:
        content = cast(dict[str, Any], json.loads(body))
        error = cast(dict[str, Any], content.get("error", content))
        return f"{error.get('code') or error.get('type')}: {error.get('message')}"[:MAX_ERROR]
    except (ValueError, AttributeError):
        return body[:MAX_ERROR].decode(errors="replace")


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
