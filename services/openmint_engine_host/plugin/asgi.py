"""The few ASGI pieces that the front needs; no framework, since it wraps vLLM's own application."""

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class BodyTooLarge(Exception):
    """The body is above the limit; the rest of it is not read."""


class ClientGone(Exception):
    """The client hung up before its body was complete."""


def header(scope: Scope, name: str) -> str:
    """The first header of that name, or an empty string."""
    wanted = name.lower().encode()
    return next((value.decode("latin-1") for key, value in scope["headers"] if key.lower() == wanted), "")


def bearer(scope: Scope) -> str:
    """The token of `Authorization: Bearer`, or an empty string."""
    scheme, _, token = header(scope, "authorization").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


async def read_body(receive: Receive, limit_bytes: int) -> bytes:
    """The whole body. Raises: BodyTooLarge, ClientGone."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > limit_bytes:
            raise BodyTooLarge
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, then what the client does next (such as hanging up)."""
    is_given = False

    async def replayed() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def with_headers(send: Send, headers: Iterable[tuple[str, str]]) -> Send:
    """A `send` that adds headers to the answer."""
    extra = [(name.encode(), value.encode()) for name, value in headers]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await send(message)

    return sending


async def answer(send: Send, status: int, body: object, headers: Iterable[tuple[str, str]] = ()) -> None:
    """Send a JSON answer."""
    content = json.dumps(body).encode()
    all_headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    all_headers += [(name.encode(), value.encode()) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": content})


async def refuse(send: Send, status: int, code: str, detail: str, headers: Iterable[tuple[str, str]] = ()) -> None:
    """Send an error in the shape that OpenAI clients read."""
    await answer(send, status, {"error": {"message": detail, "type": code, "code": code, "param": None}}, headers)
