"""`vllm-router` with consistent hashing, as a process of its own in front of stock servers.

It is taken from its unpacked wheel, so that the project's environment does not need it:
`pip download --no-deps vllm-router==0.1.17`, unpacked into `.openmint/peers/vllm-router`.
"""

import asyncio
import importlib.util
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from load.clients.completions import complete
from load.clients.records import Call, Outcome
from load.stack.server_process import ServerProcess
from load.stock.stock_engine import StockEngines
from openmint.embedded.process import free_port
from openmint.errors import EngineFailed

FOLDER = Path(__file__).parents[2] / ".openmint" / "peers" / "vllm-router"
START_TIMEOUT_S = 60.0
POLL_S = 0.2
HASHED_BY = "x-session-id"
"""The header whose value is hashed: the adapter's name, so that an adapter stays on its server."""


class VllmRouter:
    """A `Target`. Raises, on entry: EngineFailed."""

    def __init__(self, stock: StockEngines, log_dir: Path, max_concurrent: int | None = None) -> None:
        self.name = "stock, vllm-router" + ("" if max_concurrent is None else f", cap {max_concurrent}")
        self._stock = stock
        port, metrics_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "vllm_router.launch_router", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--policy", "consistent_hash", "--worker-urls", *(engine.url for engine in stock.engines)]
        command += ["--prometheus-port", str(metrics_port), "--log-level", "warn", "--disable-retries"]
        command += ["--request-timeout-secs", "300"]
        if max_concurrent is not None:
            command += ["--max-concurrent-requests", str(max_concurrent), "--queue-size", "0"]
        self._process = ServerProcess(command, {"PYTHONPATH": str(FOLDER)}, log_dir / "vllm-router.log")

    @staticmethod
    def missing() -> str:
        """Why it can't be had here; empty when it can."""
        if importlib.util.find_spec("vllm_router") or (FOLDER / "vllm_router").is_dir():
            return ""
        return f"not installed, and its wheel is not unpacked in {FOLDER.relative_to(FOLDER.parents[2])}"

    async def __aenter__(self) -> Self:
        self._process.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        try:
            while not await self._answers():
                self._process.check()
                if time.monotonic() > deadline:
                    raise EngineFailed(f"vllm-router did not answer in {START_TIMEOUT_S:g} s")
                await asyncio.sleep(POLL_S)
        except BaseException:
            await asyncio.to_thread(self._process.stop)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._process.stop)

    async def ask(self, call: Call, scheduled_s: float | None = None) -> Outcome:
        """Ask through the router."""
        headers = {HASHED_BY: call.policy.stock_name}
        return await complete(
            self._stock.session, self.url, call.policy.stock_name, call, headers=headers, scheduled_s=scheduled_s
        )

    async def _answers(self) -> bool:
        try:
            async with self._stock.session.get(f"{self.url}/health") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False
