"""The engines that are raced: an openmint engine host, and stock vLLM without plug-in and without LoRA.

Both serve in float32 with the same cores and limits, so that only the way in differs.
"""

import asyncio
import os
import secrets
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from load.handoff.answers import TIMEOUT_S, Answer, ask
from load.handoff.revision import RANK
from load.stack.server_process import ServerProcess
from openmint.embedded.process import free_port
from openmint.engines.protocol import TENANT_HEADER, EngineState
from openmint.engines.vllm import HostEngine
from openmint.errors import EngineFailed

START_TIMEOUT_S = 400.0  # eight times a start on two free cores
POLL_S = 0.05
DTYPE = "float32"
MAX_MODEL_LEN = 512
MAX_NUM_SEQS = 8
CAPACITY = 16
"""More than one run attaches, so nothing is evicted while it is timed."""


def model_cores() -> str:
    """The cores of every engine's model: all but the first, which stays with servers and clients."""
    cores = sorted(os.sched_getaffinity(0))
    return ",".join(map(str, cores[1:] or cores))


class OpenmintEngine:
    """An engine host with a store of its own, commanded directly: no scheduler, no catalogue."""

    def __init__(self, base_folder: Path, state_dir: Path) -> None:
        self._keys = {name: secrets.token_hex(16) for name in ("inference", "control", "read")}
        control_port = free_port()
        environment = {
            "OPENMINT_STATE_DIR": str(state_dir),
            "OPENMINT_STORE_URL": f"file://{state_dir / 'store'}",
            "OPENMINT_HEALTH_FILE": str(state_dir / "health.json"),
            "OPENMINT_ANNOUNCE": "false",
            "OPENMINT_ENGINE_NAME": "handoff",
            "OPENMINT_BASE_FOLDER": str(base_folder),
            "OPENMINT_DTYPE": DTYPE,
            "OPENMINT_CORE": model_cores(),
            "OPENMINT_CONTROL_PORT": str(control_port),
            "OPENMINT_ENGINE_KEY": self._keys["inference"],
            "OPENMINT_ENGINE_CONTROL_KEY": self._keys["control"],
            "OPENMINT_ENGINE_READ_KEY": self._keys["read"],
            "OPENMINT_MAX_LORAS": "4",
            "OPENMINT_MAX_CPU_LORAS": str(CAPACITY),
            "OPENMINT_MAX_LORA_RANK": str(RANK),
            "OPENMINT_MAX_NUM_SEQS": str(MAX_NUM_SEQS),
            "OPENMINT_MAX_MODEL_LEN": str(MAX_MODEL_LEN),
            "OPENMINT_DRAIN_S": "1",
        }
        arguments = [sys.executable, "-m", "openmint_engine_host.app"]
        self._process = ServerProcess(arguments, environment, state_dir / "host.log")
        self.control = HostEngine(f"http://127.0.0.1:{control_port}", self._keys["control"])
        self.client = httpx.AsyncClient()

    async def __aenter__(self) -> Self:
        self._process.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.client.aclose()
        await self.control.close()
        await asyncio.to_thread(self._process.stop)

    async def until_ready(self) -> EngineState:
        """Raises: EngineFailed when it ends or takes too long."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            self._process.check()
            try:
                state = await self.control.state()
                break
            except EngineFailed:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.3)
        headers = {"authorization": f"Bearer {self._keys['inference']}", TENANT_HEADER: "load"}
        self.client = httpx.AsyncClient(base_url=state.url, headers=headers, trust_env=False)
        return state


class StockEngine:
    """vLLM's own server on a model folder, with its development routes for the reload in place."""

    NAME = "model"

    def __init__(self, model_folder: Path, log: Path) -> None:
        port = free_port()
        environment = {
            "VLLM_PLUGINS": "",
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "VLLM_LOG_STATS_INTERVAL": "3600",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": model_cores(),
        }
        arguments = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        arguments += ["--model", str(model_folder), "--served-model-name", self.NAME]
        arguments += ["--host", "127.0.0.1", "--port", str(port), "--dtype", DTYPE]
        arguments += ["--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", str(MAX_NUM_SEQS)]
        arguments += ["--disable-uvicorn-access-log", "--enforce-eager"]
        self._process = ServerProcess(arguments, environment, log)
        self._client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False)

    async def __aenter__(self) -> Self:
        self._process.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()
        await asyncio.to_thread(self._process.stop)

    async def first_answer(self) -> Answer:
        """The first token after a start. Raises: EngineFailed when it ends or takes too long."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            self._process.check()
            try:
                if (await self._client.get("/health", timeout=TIMEOUT_S)).status_code == 200:
                    return await self.ask()
            except httpx.TransportError:
                pass
            if time.monotonic() > deadline:
                raise EngineFailed(f"stock vLLM did not answer in {START_TIMEOUT_S:g} s")
            await asyncio.sleep(POLL_S)

    async def ask(self, *, with_proof: bool = False) -> Answer:
        """One token. Raises: httpx.HTTPError."""
        return await ask(self._client, self.NAME, with_proof=with_proof)

    async def reload(self, model_folder: Path) -> None:
        """Put other weights into the running engine, and forget what it cached of the former ones.

        Raises: EngineFailed when vLLM refuses.
        """
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(model_folder)}}
        for route, content in (("/collective_rpc", body), ("/reset_prefix_cache", None)):
            found = await self._client.post(route, json=content, timeout=TIMEOUT_S)
            if found.status_code != 200:
                raise EngineFailed(f"stock vLLM answered {route} with {found.status_code}: {found.text[:500]}")
