"""Real engines for tests, started once per session and in parallel, and small signed adapters for them.

A test asks for `fp32_engine` or `bf16_engine`; only those that some selected test asks for are started. Both are whole
engine hosts in processes of their own, on the base model in OPENMINT_TEST_BASE (default .openmint/bases/smollm2-135m).
"""

import asyncio
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

from openmint.adapters.checks import check_adapter_folder
from openmint.adapters.manifest import Manifest
from openmint.adapters.revision_files import put_revision_folder
from openmint.adapters.signing import SigningKey, keys_folder
from openmint.adapters.store import Store
from openmint.bases import BaseFacts, read_base_folder
from openmint.embedded.process import free_port
from openmint.engines.protocol import AttachRequest, CommandStamp, EngineState
from openmint.engines.vllm import HostEngine
from openmint.errors import EngineFailed
from openmint.settings import CommonSettings

REPOSITORY = Path(__file__).parents[1]
START_TIMEOUT_S = 280.0
ALL_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

SLOTS, CAPACITY, MAX_RANK, MAX_RUNNING = 4, 6, 8, 8
DTYPES = {"fp32_engine": ("float32", "0"), "bf16_engine": ("bfloat16", "1")}


def base_folder() -> Path:
    """The base model that engines of tests serve."""
    path = Path(os.environ.get("OPENMINT_TEST_BASE", REPOSITORY / ".openmint/bases/smollm2-135m"))
    if not (path / "config.json").exists():
        pytest.fail(f"no base model in {path}: run `make base`, or set OPENMINT_TEST_BASE")
    return path


def write_adapter(
    folder: Path,
    base: BaseFacts,
    seed: int,
    *,
    rank: int = 4,
    alpha: float = 8.0,
    strength: float = 0.05,
    targets: Sequence[str] = ("q_proj", "v_proj"),
) -> None:
    """A random PEFT folder, a few milliseconds' work. At `strength` 0.05 it changes logprobs by a nat or so."""
    random = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {}
    for module, (out_size, in_size) in base.modules.items():
        if module.rpartition(".")[2] in targets:
            a = random.standard_normal((rank, in_size), dtype=np.float32) / np.float32(in_size**0.5)
            b = random.standard_normal((out_size, rank), dtype=np.float32) * np.float32(strength)
            tensors[f"base_model.model.{module}.lora_A.weight"] = a
            tensors[f"base_model.model.{module}.lora_B.weight"] = b
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(targets),
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def sign_adapter(folder: Path, base: BaseFacts, key: SigningKey) -> str:
    """Write manifest and signature into a folder that passes the checks; its digest."""
    raw = Manifest.of(check_adapter_folder(folder, base), base.digest).canonical_bytes()
    (folder / "manifest.json").write_bytes(raw)
    (folder / "manifest.sig").write_bytes(key.sign(raw))
    return Manifest.parse(raw).digest()


@dataclass
class RunningEngine:
    """An engine host in a process of its own, and everything a test needs to use it."""

    name: str
    dtype: str
    core: str
    state_dir: Path
    control_port: int
    base: BaseFacts
    nats: CommonSettings
    inference_key: str = field(default_factory=lambda: secrets.token_hex(16))
    control_key: str = field(default_factory=lambda: secrets.token_hex(16))
    read_key: str = field(default_factory=lambda: secrets.token_hex(16))
    process: "subprocess.Popen[bytes] | None" = None
    _commands: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    _seeds: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    @property
    def control_url(self) -> str:
        return f"http://127.0.0.1:{self.control_port}"

    @property
    def engine(self) -> HostEngine:
        return HostEngine(self.control_url, self.control_key)

    @property
    def store(self) -> Store:
        return Store.open(f"file://{self.state_dir / 'store'}")

    def start(self, **more: str) -> None:
        """Start the process; `until_ready` waits for its engine."""
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OPENMINT_STATE_DIR": str(self.state_dir),
            "OPENMINT_STORE_URL": f"file://{self.state_dir / 'store'}",
            "OPENMINT_HEALTH_FILE": str(self.state_dir / "health.json"),
            "OPENMINT_NATS_URL": self.nats.nats_url,
            "OPENMINT_NATS_USER": self.nats.nats_user,
            "OPENMINT_NATS_PASSWORD": self.nats.nats_password,
            "OPENMINT_ENGINE_NAME": self.name,
            "OPENMINT_BASE_FOLDER": str(base_folder()),
            "OPENMINT_DTYPE": self.dtype,
            "OPENMINT_CORE": self.core,
            "OPENMINT_POOLS": "serve,gate-fp32" if self.dtype == "float32" else "serve",
            "OPENMINT_CONTROL_PORT": str(self.control_port),
            "OPENMINT_ENGINE_KEY": self.inference_key,
            "OPENMINT_ENGINE_CONTROL_KEY": self.control_key,
            "OPENMINT_ENGINE_READ_KEY": self.read_key,
            "OPENMINT_MAX_LORAS": str(SLOTS),
            "OPENMINT_MAX_CPU_LORAS": str(CAPACITY),
            "OPENMINT_MAX_LORA_RANK": str(MAX_RANK),
            "OPENMINT_MAX_NUM_SEQS": str(MAX_RUNNING),
            **more,
        }
        self.state_dir.mkdir(parents=True, exist_ok=True)
        with (self.state_dir / "host.log").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "openmint_engine_host.app"], env=environment, stdout=output, stderr=output
            )

    async def until_ready(self, after_boot: str = "") -> EngineState:
        """Wait for the engine, or for its next boot after the one named."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self.process is not None and self.process.poll() is None, self.logs()
            try:
                state = await self.engine.state()
                if str(state.boot_id) != after_boot:
                    return state
            except EngineFailed:
                await asyncio.sleep(0.3)
        raise AssertionError(f"engine {self.name} is not ready after {START_TIMEOUT_S} s\n{self.logs()}")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def logs(self) -> str:
        files = [self.state_dir / "host.log", *self.state_dir.glob("spool/*/vllm.log*")]
        return "\n".join(f"== {file}\n{file.read_text(errors='replace')[-3000:]}" for file in files if file.exists())

    def vllm_processes(self) -> dict[str, psutil.Process]:
        """vLLM's own processes by title: VLLM::EngineCore, VLLM::Worker, and the server itself as `server`."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children(recursive=True)
        named = {" ".join(child.cmdline()): child for child in children}
        # The host's own child, which checks adapters, lives on when an engine dies.
        ours = {title: child for title, child in named.items() if "inspection_child" not in title}
        return {("server" if "api_server" in title else title.strip()): child for title, child in ours.items()}

    def stamp(self, epoch: int = 1) -> CommandStamp:
        return CommandStamp(epoch, next(self._commands))

    def fresh_seed(self) -> int:
        """A seed that no other test of this session has used, so that digests differ."""
        return next(self._seeds)

    def adapter_folder(self, digest: str) -> Path:
        return self.state_dir / "adapters" / digest.removeprefix("sha256:")

    async def publish(
        self,
        seed: int | None = None,
        *,
        rank: int = 4,
        strength: float = 0.05,
        targets: Sequence[str] = ("q_proj", "v_proj"),
    ) -> str:
        """Make a random adapter, sign it and put it into the store; its digest."""
        seed = self.fresh_seed() if seed is None else seed
        scratch = self.state_dir / "adapters" / f"seed-{seed}-{secrets.token_hex(4)}"
        write_adapter(scratch, self.base, seed, rank=rank, strength=strength, targets=targets)
        return await self.publish_folder(scratch)

    async def publish_folder(self, folder: Path) -> str:
        digest = sign_adapter(folder, self.base, SigningKey.load_or_create(keys_folder(self.state_dir)))
        await put_revision_folder(self.store, digest, folder)
        final = self.adapter_folder(digest)
        await asyncio.to_thread(folder.rename, final)
        return digest

    async def attach(self, *digests: str, label: str = "acme/tone") -> list[str]:
        """Stage and attach; the adapter names."""
        for digest in digests:
            await self.engine.stage(self.stamp(), digest)
        results = await self.engine.attach(self.stamp(), [AttachRequest(digest, label) for digest in digests])
        assert all(not result.error for result in results), results
        return [result.adapter_name for result in results]

    async def clear(self) -> None:
        """Remove every resident."""
        for resident in (await self.engine.state()).residents:
            assert await self.engine.remove(self.stamp(), resident.adapter_name, 30)

    def http(self, tenant: str = "acme") -> httpx.AsyncClient:
        """A client for the engine's own port. The port changes with the boot: make a new one after a restart."""
        answer = httpx.get(
            f"{self.control_url}/control/residents", headers={"authorization": f"Bearer {self.read_key}"}
        )
        headers = {"authorization": f"Bearer {self.inference_key}", "x-openmint-tenant": tenant}
        return httpx.AsyncClient(base_url=answer.json()["url"], headers=headers, timeout=120, trust_env=False)


def _wanted(items: Sequence[pytest.Item]) -> set[str]:
    """Fixtures that selected tests name; a conformance case asks for its engine only when it runs."""
    named: set[str] = set()
    for item in items:
        own = DTYPES.keys() & set(getattr(item, "fixturenames", ()))
        named |= own or ({"fp32_engine"} if item.get_closest_marker("engine") else set())
    return named


@pytest.fixture(scope="session")
def engine_processes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, nats_settings: CommonSettings
) -> Iterator[dict[str, RunningEngine]]:
    """Every engine that a selected test asks for, starting side by side."""
    engines: dict[str, RunningEngine] = {}
    base = read_base_folder(base_folder())
    for name in sorted(_wanted(request.session.items)):
        dtype, core = DTYPES[name]
        state_dir = tmp_path_factory.mktemp(name)
        engines[name] = RunningEngine(
            name.removesuffix("_engine"), dtype, core, state_dir, free_port(), base, nats_settings
        )
        engines[name].start()
    yield engines
    for engine in engines.values():
        engine.stop()


@pytest.fixture(scope="session")
async def started_fp32_engine(engine_processes: dict[str, RunningEngine]) -> RunningEngine:
    engine = engine_processes["fp32_engine"]
    await engine.until_ready()
    return engine


@pytest.fixture(scope="session")
async def started_bf16_engine(engine_processes: dict[str, RunningEngine]) -> RunningEngine:
    engine = engine_processes["bf16_engine"]
    await engine.until_ready()
    return engine


@pytest.fixture
async def fp32_engine(started_fp32_engine: RunningEngine) -> AsyncIterator[RunningEngine]:
    """A ready engine of the session without adapters, float32."""
    await started_fp32_engine.until_ready()
    await started_fp32_engine.clear()
    yield started_fp32_engine


@pytest.fixture
async def bf16_engine(started_bf16_engine: RunningEngine) -> AsyncIterator[RunningEngine]:
    """A ready engine of the session without adapters, bfloat16."""
    await started_bf16_engine.until_ready()
    await started_bf16_engine.clear()
    yield started_bf16_engine
