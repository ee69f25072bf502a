"""What may come in: caps on headers, address and body, and the time a body may take.

Raw ASGI on purpose: these checks run before any framework reads a byte.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from openmint.errors import TooLarge
from openmint_gateway.problems import BodyTooSlow, HeadersTooLarge

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_WAIT_HEADER = b"x-openmint-max-wait-s"
"""The caller's own bound on the wait for the first token; the setting's bound holds beside it."""

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 1024
MAX_ADDRESS_BYTES = 8 * 1024
MAX_BODY_BYTES = 4 * 1024 * 1024
"""A prompt of a million tokens is below this; anything larger is data and goes to the data route."""

BODY_DEADLINE_S = 10.0


class ClientLeft(Exception):
    """The client hung up; there is nobody to answer."""


def header(scope: Scope, name: bytes) -> str:
    """The value of a header, empty when it is absent."""
    for key, value in scope["headers"]:
        if key == name:
            return value.decode("latin-1")
    return ""


def check_head(scope: Scope) -> None:
    """Raises: HeadersTooLarge."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    if len(headers) > MAX_HEADERS:
        raise HeadersTooLarge(f"more than {MAX_HEADERS} headers")
    if sum(len(key) + len(value) + 4 for key, value in headers) > MAX_HEADER_BYTES:
        raise HeadersTooLarge(f"the headers are larger than {MAX_HEADER_BYTES} bytes")
    if len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"") > MAX_ADDRESS_BYTES:
        raise HeadersTooLarge(f"the address is longer than {MAX_ADDRESS_BYTES} bytes")


def check_declared_length(scope: Scope, limit: int) -> None:
    """Refuse by the declared length before a byte of the body is read. Raises: TooLarge."""
    declared = header(scope, b"content-length")
    if declared.isdigit() and int(declared) > limit:
        raise TooLarge(f"the body has {declared[:20]} bytes; the limit is {limit}", field="body")


async def read_body(receive: Receive, limit: int = MAX_BODY_BYTES, deadline_s: float = BODY_DEADLINE_S) -> bytes:
    """The whole body. Raises: TooLarge, BodyTooSlow, ClientLeft."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(deadline_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                part: bytes = message.get("body", b"")
                size += len(part)
                if size > limit:
                    raise TooLarge(f"the body is larger than {limit} bytes", field="body")
                if part:
                    parts.append(part)
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError as error:
        raise BodyTooSlow(f"the body did not arrive within {deadline_s:.0f} s") from error


async def wait_for_hang_up(receive: Receive) -> None:
    """Return when the client has gone. uvicorn's `send` says nothing of it; this is the only signal."""
    while (await receive())["type"] != "http.disconnect":
        pass


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read already, then whatever comes after it."""
    given = False

    async def receive_again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
