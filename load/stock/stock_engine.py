"""Stock vLLM servers that load adapters on demand from a folder: vLLM's own server, resolver and loader.

The same cores, limits and repaired LoRA kernels as ours; nothing else of openmint. A server runs in the folder of base
models and is given the base's bare name, which is what its resolver looks for in an adapter's configuration.
"""

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from load.clients.completions import complete, make_session
from load.clients.records import Call, Outcome
from load.stack.counters import EngineCounters
from load.stack.engine_limits import EngineLimits
from load.stack.policies import Policy
from load.stack.server_process import ServerProcess
from load.stack.worker_notes import NOTES_VARIABLE, count_notes
from openmint.bases import read_base_folder
from openmint.embedded.process import free_port
from openmint.errors import EngineFailed
from openmint_engine_host.launch import engine_targets

EXTENSION = "load.stack.noted_workers.StockNotedWorker"
REPOSITORY = Path(__file__).parents[2]
START_TIMEOUT_S = 400.0
POLL_S = 0.25
UNLOADED = (200, 404)


class StockEngine:
    """One server."""

    def __init__(
        self,
        name: str,
        base_folder: Path,
        adapters_folder: Path,
        core: int,
        limits: EngineLimits,
        log_dir: Path,
        arguments: Sequence[str] = (),
    ) -> None:
        self.name = name
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.notes = log_dir / f"stock-{name}.notes"
        environment = {
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            "OMP_NUM_THREADS": "1",
            "VLLM_PLUGINS": "openmint,lora_filesystem_resolver",
            "OPENMINT_PLUGIN_ONLY_REPAIR": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_LORA_RESOLVER_CACHE_DIR": str(adapters_folder),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "TORCH_COMPILE_DISABLE": "1",
            "VLLM_LOG_STATS_INTERVAL": "3600",
            "VLLM_CPU_KVCACHE_SPACE": str(limits.kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": str(core),
            NOTES_VARIABLE: str(self.notes),
        }
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", base_folder.name]
        command += ["--host", "127.0.0.1", "--port", str(port), "--worker-extension-cls", EXTENSION]
        command += [*limits.as_arguments(engine_targets(read_base_folder(base_folder).modules)), *arguments]
        self.process = ServerProcess(command, environment, log_dir / f"stock-{name}.log", base_folder.resolve().parent)

    async def ask(self, session: aiohttp.ClientSession, call: Call, scheduled_s: float | None = None) -> Outcome:
        """Ask this server; an adapter that it has not is loaded by its resolver first."""
        return await complete(
            session, self.url, call.policy.stock_name, call, headers={}, scheduled_s=scheduled_s, engine=self.name
        )

    async def until_ready(self, session: aiohttp.ClientSession) -> None:
        """Raises: EngineFailed when it ends or takes too long."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            self.process.check()
            try:
                async with session.get(f"{self.url}/health") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            if time.monotonic() > deadline:
                raise EngineFailed(f"stock engine {self.name} did not answer in {START_TIMEOUT_S:g} s")
            await asyncio.sleep(POLL_S)

    async def unload(self, session: aiohttp.ClientSession, policy: Policy) -> None:
        """Forget the name; the worker keeps the weights until others push them out, but no request finds them."""
        body = {"lora_name": policy.stock_name}
        async with session.post(f"{self.url}/v1/unload_lora_adapter", json=body) as answer:
            if answer.status not in UNLOADED:
                raise EngineFailed(f"stock engine {self.name} does not unload: {(await answer.text())[:300]}")

    def counters(self) -> EngineCounters:
        """Loads and slot changes since the start."""
        return count_notes(self.notes)


class StockEngines:
    """Several stock servers, each on a core of its own. Start them with `async with`."""

    def __init__(
        self,
        base_folder: Path,
        adapters_folder: Path,
        count: int = 1,
        limits: EngineLimits | None = None,
        *,
        log_dir: Path,
        arguments: Sequence[str] = (),
    ) -> None:
        adapters_folder.mkdir(parents=True, exist_ok=True)
        log_dir.mkdir(parents=True, exist_ok=True)
        cores = sorted(os.sched_getaffinity(0))
        self.engines = [
            StockEngine(
                f"stock-{number}",
                base_folder,
                adapters_folder,
                cores[number % len(cores)],
                limits or EngineLimits(),
                log_dir,
                arguments,
            )
            for number in range(count)
        ]
        self.limits = limits or EngineLimits()
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """The clients' connections."""
        assert self._session is not None, "stock engines are started with `async with`"
        return self._session

    async def __aenter__(self) -> Self:
        self._session = make_session()
        try:
            for engine in self.engines:
                engine.process.start()
            await asyncio.gather(*(engine.until_ready(self.session) for engine in self.engines))
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def counters(self) -> dict[str, EngineCounters]:
        """What each server did since it was started."""
        return {engine.name: await asyncio.to_thread(engine.counters) for engine in self.engines}

    async def clear(self, policies: Sequence[Policy]) -> None:
        """Make these policies unknown on every server."""
        for engine in self.engines:
            await asyncio.gather(*(engine.unload(self.session, policy) for policy in policies))

    async def _close(self) -> None:
        if self._session is not None:
            await self._session.close()
        await asyncio.gather(*(asyncio.to_thread(engine.process.stop) for engine in self.engines))
