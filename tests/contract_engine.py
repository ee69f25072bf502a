"""An HTTP server that speaks an engine's contract to the gateway, for tests of the gateway's own logic."""

import asyncio
import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from aiohttp import web

from openmint.bus.connection import Bus
from openmint.engines.protocol import REVISION_HEADER, TENANT_HEADER, VERDICT_HEADER
from openmint.events import AdapterResident, EngineHeartbeat, EngineLeft

KEY = "engine-key"


@dataclass
class Seen:
    """One request as the engine saw it; `was_cut_off` once its caller left before the end."""

    path: str
    body: dict[str, Any]
    tenant: str
    was_cut_off: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class ContractEngine:
    """A small real HTTP server that speaks an engine's contract: headers, verdicts, streams.

    It generates no text worth reading; the real engine answers in tests/lifecycle. Set its fields to make it misbehave.
    """

    name: str
    base: str = "tiny"
    boot_id: UUID = field(default_factory=uuid4)
    residents: dict[str, str] = field(default_factory=dict)
    verdicts: deque[str] = field(default_factory=deque)
    told_revision: str | None = None
    dies_after_tokens: int | None = None
    token_delay_s: float = 0.0
    tokens: int = 3
    seen: list[Seen] = field(default_factory=list)
    sequence: int = 0
    url: str = ""
    runner: web.AppRunner | None = None
    is_full: bool = False
    refusal: str | None = None
    max_running: int = 0

    async def start(self) -> "ContractEngine":
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v1/chat/completions", self.answer)
        app.router.add_post("/v1/completions", self.answer)
        app.router.add_get("/control/residents", self.list_residents)
        self.runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"
        return self

    async def stop(self) -> None:
        if self.runner is not None:
            await self.runner.cleanup()

    def heartbeat(self) -> EngineHeartbeat:
        return EngineHeartbeat(
            base=self.base,
            base_digest="sha256:" + "b" * 64,
            engine=self.name,
            boot_id=self.boot_id,
            pools=["serve"],
            url=self.url,
            control_url=self.url,
            capacity=8,
            max_rank=64,
            list_version=self.sequence,
            list_hash=str(self.sequence),
            max_running=self.max_running,
        )

    async def hold(self, bus: Bus, digest: str) -> str:
        """Take an adapter in, as a host would tell it."""
        self.sequence += 1
        adapter_name = f"adapter@{digest}#{self.sequence}"
        self.residents[adapter_name] = digest
        await bus.publish_soft(
            AdapterResident(
                base=self.base,
                engine=self.name,
                boot_id=self.boot_id,
                sequence=self.sequence,
                digest=digest,
                adapter_name=adapter_name,
                url=self.url,
                pools=["serve"],
            )
        )
        return adapter_name

    async def leave(self, bus: Bus) -> None:
        """Stop, as a host would tell it."""
        await self.stop()
        await bus.publish_soft(EngineLeft(base=self.base, engine=self.name, boot_id=self.boot_id, reason="test"))

    async def list_residents(self, _: web.Request) -> web.Response:
        residents = [
            {"digest": digest, "adapter_name": name, "in_flight": 0, "adapter_bytes": 1}
            for name, digest in self.residents.items()
        ]
        return web.json_response(
            {
                "engine": self.name,
                "base": self.base,
                "boot_id": str(self.boot_id),
                "pools": ["serve"],
                "url": self.url,
                "list_version": self.sequence,
                "residents": residents,
            }
        )

    async def answer(self, request: web.Request) -> web.StreamResponse:
        assert request.headers["authorization"] == f"Bearer {KEY}"
        body = await request.json()
        verdict = "busy" if self.is_full else self.verdicts.popleft() if self.verdicts else ""
        model = body["model"]
        revision = "base" if model == self.base else self.residents.get(model)
        if revision is None and not verdict:
            verdict = "absent"
        if verdict:
            return web.Response(status=503, headers={VERDICT_HEADER: verdict, REVISION_HEADER: str(revision)})
        headers = {REVISION_HEADER: self.told_revision or str(revision)}
        if self.refusal is not None:
            return web.json_response({"error": {"message": self.refusal}}, status=400, headers=headers)
        seen = Seen(request.path, body, request.headers[TENANT_HEADER])
        tokens, delay_s = self.tokens, self.token_delay_s  # A test may change them once it has seen the request.
        self.seen.append(seen)
        try:
            if body.get("stream"):
                return await self.stream(request, body, headers, tokens, delay_s)
            await asyncio.sleep(delay_s * tokens)
            if self.dies_after_tokens is not None:
                assert request.transport is not None
                request.transport.abort()
            return web.json_response(self.whole(body, request.path), headers=headers)
        except (asyncio.CancelledError, ConnectionResetError):
            seen.was_cut_off.set()
            raise

    async def stream(
        self, request: web.Request, body: dict[str, Any], headers: dict[str, str], tokens: int, delay_s: float
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={**headers, "content-type": "text/event-stream"})
        await response.prepare(request)
        for number in range(tokens):
            if number == self.dies_after_tokens:
                assert request.transport is not None
                request.transport.abort()
                return response
            if delay_s:
                await asyncio.sleep(delay_s)
            await response.write(self.event(self.chunk(body, request.path, number)))
        last = {"id": "x", "object": "chunk", "created": 1, "model": body["model"], "choices": []}
        await response.write(self.event({**last, "usage": self.usage()}) + b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def event(self, body: dict[str, Any]) -> bytes:
        return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"

    def usage(self) -> dict[str, int]:
        return {"prompt_tokens": 5, "completion_tokens": self.tokens, "total_tokens": 5 + self.tokens}

    def chunk(self, body: dict[str, Any], path: str, number: int) -> dict[str, Any]:
        finish = "stop" if number == self.tokens - 1 else None
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        if path == "/v1/chat/completions":
            choice["delta"] = {"role": "assistant", "content": f"t{number} "}
            kind = "chat.completion.chunk"
        else:
            choice["text"] = f"t{number} "
            kind = "text_completion"
        return {"id": "x", "object": kind, "created": 1, "model": body["model"], "choices": [choice]}

    def whole(self, body: dict[str, Any], path: str) -> dict[str, Any]:
        text = "".join(f"t{number} " for number in range(self.tokens))
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
        if path == "/v1/chat/completions":
            choice["message"] = {"role": "assistant", "content": text}
            kind = "chat.completion"
        else:
            choice["text"] = text
            kind = "text_completion"
        return {
            "id": "x",
            "object": kind,
            "created": 1,
            "model": body["model"],
            "choices": [choice],
            "usage": self.usage(),
        }
