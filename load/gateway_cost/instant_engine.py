"""A process that speaks an engine's contract and answers at once: `python -m load.gateway_cost.instant_engine PORT`.

Streams have CHUNKS events, each written by itself; a request for HOLD_TOKENS tokens is never answered.
"""

import asyncio
import sys

CHUNKS = 16
HOLD_TOKENS = 4999
"""What asks to be held: it takes a place of the engine until its caller leaves."""


class InstantEngine(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """asyncio."""
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(_between(head.lower(), b"content-length: ", b"\r\n") or 0)
        if len(body) < length:
            return
        self._data = body[length:]
        body = body[:length]
        if b'"max_tokens":%d' % HOLD_TOKENS not in body:
            asyncio.get_running_loop().create_task(self._answer(body))

    async def _answer(self, body: bytes) -> None:
        assert self._transport is not None
        model = _between(body, b'"model":"', b'"')
        # Names of adapters are `<digest>#1`, so that nothing must be looked up.
        head = b"HTTP/1.1 200 OK\r\nx-openmint-revision: " + model.partition(b"#")[0] + b"\r\n"
        usage = b'"usage":{"prompt_tokens":5,"completion_tokens":%d,"total_tokens":%d}' % (CHUNKS, CHUNKS + 5)
        opening = b'{"id":"x","object":"text_completion","created":1,"model":"' + model + b'","choices":['
        if b'"stream":true' not in body:
            answer = opening + b'{"index":0,"text":"a token","finish_reason":"stop"}],' + usage + b"}"
            kind = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(answer)
            self._transport.write(head + kind + answer)
            return
        self._transport.write(head + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(CHUNKS):
            self._event(opening + b'{"index":0,"text":" a","finish_reason":null}]}')
            await asyncio.sleep(0)
        self._event(opening + b"]," + usage + b"}")
        self._event(b"[DONE]")
        self._transport.write(b"0\r\n\r\n")

    def _event(self, body: bytes) -> None:
        assert self._transport is not None
        event = b"data: " + body + b"\n\n"
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))


def _between(text: bytes, start: bytes, end: bytes) -> bytes:
    return text.partition(start)[2].partition(end)[0]


async def serve(port: int) -> None:
    """Until it is killed."""
    server = await asyncio.get_running_loop().create_server(InstantEngine, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
