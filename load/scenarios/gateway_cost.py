"""What a request costs the gateway's processor: answered whole, as a stream, and refused.

The engine answers at once and stands in a process of its own, so what is counted is the gateway's work alone. Time is
user and system time of its process; each row's windows are interleaved with those of the others.
"""

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from load.report import ReportBuilder
from load.scenarios.contract import Options, Scenario
from openmint.endings import end

if TYPE_CHECKING:
    import aiohttp

    from load.gateway_cost.bare_gateway import BareGateway

CLIENTS = 12
WINDOW_S = 3.0
ROUNDS = 9
QUICK_ROUNDS = 3
WARM_UP_S = 2.0
MAX_RUNNING = 16
HELD = MAX_RUNNING + 2
"""Requests that fill the engine, so that all others are judged."""

WHOLE_US, CHUNK_US, REFUSAL_US = 420.0, 50.0, 420.0
"""Two thirds of the 633 us that a request cost before lines were built; a chunk as DESIGN's research asks for."""


@dataclass(slots=True)
class Costs:
    """Microseconds of the gateway's processor, per window."""

    whole: list[float] = field(default_factory=list[float])
    stream: list[float] = field(default_factory=list[float])
    chunk: list[float] = field(default_factory=list[float])
    refusal: list[float] = field(default_factory=list[float])


def run(options: Options, report: ReportBuilder) -> None:
    """All rows, interleaved."""
    found = asyncio.run(measure(QUICK_ROUNDS if options.is_quick else ROUNDS))
    whole = report.measure("answered whole", "us", found.whole)
    stream = report.measure("answered as a stream", "us", found.stream)
    chunk = report.measure("further event of a stream", "us", found.chunk)
    refusal = report.measure("refused", "us", found.refusal)
    report.check_at_most("a request answered whole", whole.median, WHOLE_US)
    report.check_at_most("a further event of a stream", chunk.median, CHUNK_US)
    report.check_at_most("a refused request", refusal.median, REFUSAL_US)
    report.note(f"{CLIENTS} clients one after the other; streams have 16 events and the closing two ({stream.unit})")


async def measure(rounds: int, source: Path | None = None) -> Costs:
    """The rows for the gateway of a repository; ours without one."""
    from load.gateway_cost.bare_gateway import REPOSITORY, bare_gateway
    from load.gateway_cost.instant_engine import CHUNKS

    costs = Costs()
    async with bare_gateway(source or REPOSITORY, MAX_RUNNING) as gateway, _session() as session:
        asking = _Asking(gateway, session)
        await asking.window(asking.whole, WARM_UP_S)
        await asking.window(asking.stream, WARM_UP_S)
        for _ in range(rounds):
            costs.whole.append(await asking.window(asking.whole, WINDOW_S))
            costs.stream.append(await asking.window(asking.stream, WINDOW_S))
            costs.chunk.append((costs.stream[-1] - costs.whole[-1]) / CHUNKS)
            async with asking.full_engine():
                costs.refusal.append(await asking.window(asking.refused, WINDOW_S))
    return costs


@asynccontextmanager
async def _session() -> AsyncGenerator["aiohttp.ClientSession"]:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


class _Asking:
    """Clients of one gateway."""

    def __init__(self, gateway: "BareGateway", session: "aiohttp.ClientSession") -> None:
        import psutil

        self._gateway, self._session = gateway, session
        self._process = psutil.Process(gateway.pid)
        self._policies = itertools.cycle(gateway.policies[:8])

    async def window(self, ask: Callable[[], Awaitable[None]], seconds: float) -> float:
        """Microseconds of the gateway for one request, asked by several clients for some time."""
        loop = asyncio.get_running_loop()
        before, ends_s, done = sum(self._process.cpu_times()[:2]), loop.time() + seconds, 0

        async def client() -> None:
            nonlocal done
            while loop.time() < ends_s:
                await ask()
                done += 1

        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        return (sum(self._process.cpu_times()[:2]) - before) / done * 1e6

    async def whole(self) -> None:
        """An answer in one piece."""
        await self._ask(200, stream=False)

    async def stream(self) -> None:
        """An answer as a stream."""
        await self._ask(200, stream=True)

    async def refused(self) -> None:
        """A request that is told at once that it would wait too long."""
        await self._ask(429, stream=True, max_wait_s="0.01")

    @asynccontextmanager
    async def full_engine(self) -> AsyncGenerator[None]:
        """Every place of the engine taken, and one request of each tenant waiting, so that newcomers are judged."""
        from load.gateway_cost.instant_engine import HOLD_TOKENS

        held = [asyncio.create_task(self._ask(200, max_tokens=HOLD_TOKENS)) for _ in range(HELD + CLIENTS)]
        await asyncio.sleep(0.5)
        try:
            yield
        finally:
            await end(*held)
            await asyncio.sleep(0.5)

    async def _ask(self, expected: int, *, stream: bool = False, max_tokens: int = 16, max_wait_s: str = "") -> None:
        policy = next(self._policies)
        body = {"model": policy.model, "prompt": PROMPT, "max_tokens": max_tokens, "stream": stream}
        headers = {"authorization": f"Bearer {self._gateway.keys[policy.tenant]}", "content-type": "application/json"}
        if max_wait_s:
            headers["x-openmint-max-wait-s"] = max_wait_s
        url = f"{self._gateway.url}/v1/completions"
        async with self._session.post(url, data=json.dumps(body), headers=headers) as answer:
            text = await answer.read()
            if answer.status != expected:
                raise RuntimeError(f"status {answer.status} and not {expected}: {text[:500]!r}")


PROMPT = " ".join(["word"] * 96)

GATEWAY_COST = Scenario("gateway-cost", "the gateway's processor time per request, event and refusal", run)
