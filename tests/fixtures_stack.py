"""A whole local stack, started once: every service, real NATS, Postgres and vLLM, real weights."""

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import httpx
import nats
import pytest

from openmint.catalog.keys import create_key
from openmint.engines.protocol import EngineState
from openmint.engines.vllm import HostEngine
from openmint.local_stack import EngineSpec, StackPlan, down, free_port, secret_file, up
from openmint.settings import CommonSettings

Answer = TypeVar("Answer")

BASES = Path(__file__).parents[1] / ".openmint" / "bases"
BASE = "smollm2-135m"
TENANT = "lab"
SUMS = [{"prompt": f"{a} plus {b} is", "completion": f" {a + b}"} for a in range(4) for b in range(4)]


@dataclass(frozen=True)
class Stack:
    """The running stack and how to reach it."""

    state_dir: Path
    settings: CommonSettings
    url: str
    key: str
    other_key: str

    def client(self, key: str | None = None) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {key or self.key}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=httpx.Timeout(180))

    async def heartbeat(self) -> dict[str, Any]:
        """The next heartbeat of an engine."""
        client = await nats.connect(
            self.settings.nats_url, user=self.settings.nats_user, password=self.settings.nats_password
        )
        beats = await client.subscribe("openmint.engine.heartbeat.>")
        body = json.loads((await beats.next_msg(timeout=10)).data)
        await client.close()
        return body

    async def engine_state(self) -> EngineState:
        """The engine's own word, from its host's control port (whose address its heartbeats tell)."""
        control_url = (await self.heartbeat())["control_url"]
        engine = HostEngine(control_url, secret_file(self.state_dir, "engine-control.key"))
        try:
            return await engine.state()
        finally:
            await engine.close()

    async def publish(self, body: dict[str, Any] | bytes, token: str = "job", tenant: str = TENANT) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        client = await nats.connect(
            self.settings.nats_url, user=self.settings.nats_user, password=self.settings.nats_password
        )
        await client.publish(f"openmint.train.requested.v1.{tenant}.{token}", raw)
        await client.close()


async def eventually(ask: Callable[[], Awaitable[Answer | None]], what: str, timeout_s: float = 180.0) -> Answer:
    """Poll until the answer is not None. Fails the test, naming what was waited for."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            answer = await ask()
        except httpx.HTTPError:
            answer = None
        if answer is not None:
            return answer
        await asyncio.sleep(0.3)
    pytest.fail(f"{what}: not within {timeout_s:.0f} s")


async def make_key(settings: CommonSettings, tenant: str, scopes: list[str]) -> str:
    connection = await asyncpg.connect(settings.postgres_dsn)
    try:
        async with connection.transaction():
            pepper = secret_file(settings.state_dir, "pepper.key").encode()
            return (await create_key(connection, tenant, scopes, pepper=pepper))[0]
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def state_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="openmint-life-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
async def stack(state_dir: Path) -> AsyncIterator[Stack]:
    """Up once for all lifecycle tests; one fp32 engine is in both pools, so that it starts in half the time."""
    plan = StackPlan(
        state_dir=state_dir,
        engines=(EngineSpec("one", "float32", ("serve", "gate-fp32")),),
        base_folders=(BASES / BASE,),
        gateway_port=free_port(),
    )
    seen = await asyncio.to_thread(up, plan)
    settings = CommonSettings(state_dir=state_dir).resolve()
    scopes = ["train", "read", "infer", "promote"]
    running = Stack(
        state_dir,
        settings,
        seen.gateway_url,
        await make_key(settings, TENANT, scopes),
        await make_key(settings, "other", scopes),
    )
    try:
        async with running.client() as client:

            async def answers() -> bool | None:
                body = {"model": BASE, "prompt": "1", "max_tokens": 1}
                return True if (await client.post("/v1/completions", json=body)).status_code == 200 else None

            await eventually(answers, "the engine's first answer", 400)
        yield running
    finally:
        await asyncio.to_thread(down, state_dir)


async def life_of(stack: Stack, policy: str, **changes: Any) -> dict[str, Any]:
    """Publish a small job on the bus and wait until its revision has a verdict; the revision."""
    job = {
        "policy": policy,
        "base": BASE,
        "dataset": {"rows": SUMS},
        "optimizer": {"learning_rate": 2e-3},
        "training": {"steps": 4, "batch_rows": 8},
        "promotion": {"rule": "on_pass"},
    } | changes
    async with stack.client() as client:
        before = await client.get(f"/v1/policies/{policy}/revisions")
        known = {r["revision_id"] for r in before.json()["items"]} if before.status_code == 200 else set()
        await stack.publish(job)

        async def verdict() -> dict[str, Any] | None:
            listed = await client.get(f"/v1/policies/{policy}/revisions")
            if listed.status_code != 200:
                return None
            new = [r for r in listed.json()["items"] if r["revision_id"] not in known]
            done = [r for r in new if r["state"] in ("eligible", "rejected", "failed")]
            return done[0] if done else None

        return await eventually(verdict, f"a verdict on {policy}", 300)


@pytest.fixture(scope="session")
async def sums(stack: Stack) -> dict[str, Any]:
    """A policy `lab/sums` whose first revision is eligible and in production."""
    revision = await life_of(stack, "sums")
    assert revision["state"] == "eligible", revision

    async with stack.client() as client:

        async def production() -> bool | None:
            return True if (await client.get("/v1/policies/sums/aliases/production")).status_code == 200 else None

        await eventually(production, "the promotion by rule", 30)
    return revision
