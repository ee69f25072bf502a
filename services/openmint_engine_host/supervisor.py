"""Keeps one vLLM process alive: start, watch its pid and its port, kill its whole group, start anew.

Each start is a boot with an id of its own; adapters, names and keys of a former boot mean nothing in the next.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog

from openmint.clock import Clock, WallClock
from openmint.errors import EngineFailed
from openmint.identifiers import new_id
from openmint_engine_host.launch import plan_launch
from openmint_engine_host.layout import ModuleTable
from openmint_engine_host.plugin.front_settings import FrontSettings
from openmint_engine_host.plugin_client import PluginClient
from openmint_engine_host.settings import EngineHostSettings

log = structlog.get_logger()

PULSE_EVERY_S = 1.0
ASK_WORKER_EVERY_S = 5.0
STOP_GRACE_S = 10.0
FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 30.0
HEALTHY_AFTER_S = 60.0  # a boot that answered for so long was not part of a crash loop
REFUSED_LIMIT = 3  # pulses refused at once: the port is closed although the process lives
LOG_TAIL_BYTES = 2_000


@dataclass(slots=True)
class Boot:
    """One life of the engine, from ready to lost."""

    boot_id: UUID
    url: str
    process: asyncio.subprocess.Process
    plugin: PluginClient
    build: str
    module_table: ModuleTable
    capabilities: frozenset[str]
    capacity: int
    slots: int
    pulse: dict[str, Any] = field(default_factory=dict[str, Any])
    """The newest look of the front at itself, at most about a second old."""

    worker_answered_s: float = 0.0

    @property
    def layout(self) -> str:
        """The fingerprint that prepared files must have."""
        return self.module_table.fingerprint()


OnReady = Callable[[Boot], Awaitable[None]]
OnLost = Callable[[Boot, str], Awaitable[None]]


class Supervisor:
    """One engine's process."""

    def __init__(self, settings: EngineHostSettings, targets: list[str], clock: Clock | None = None) -> None:
        self._settings = settings
        self._targets = targets
        self._clock = clock or WallClock()
        self._boot: Boot | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._restart_because = ""
        self.log_file = settings.run_dir / "vllm.log"

    @property
    def boot(self) -> Boot | None:
        """The engine that answers now, if one does."""
        return self._boot

    def ready_boot(self) -> Boot:
        """The engine that answers now. Raises: EngineFailed."""
        if self._boot is None:
            raise EngineFailed(f"engine {self._settings.engine_name} is not up")
        return self._boot

    def restart(self, reason: str) -> None:
        """Kill this boot and start another."""
        self._restart_because = reason

    async def run(self, on_ready: OnReady, on_lost: OnLost) -> None:
        """Start, watch, start anew, until cancelled; the process group is gone when this returns."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            answered_s = 0.0
            try:
                answered_s = await self._one_boot(on_ready, on_lost)
            except EngineFailed as error:
                log.error("engine.start_failed", detail=error.detail, log_tail=tail_of(self.log_file))
            finally:
                await self._kill_group()
            if answered_s > HEALTHY_AFTER_S:
                backoff_s = FIRST_BACKOFF_S
            await self._clock.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)

    async def _one_boot(self, on_ready: OnReady, on_lost: OnLost) -> float:
        """Start vLLM and stay until it is lost; for how many seconds it answered. Raises: EngineFailed."""
        boot = await self._start()
        began = self._clock.monotonic_s()
        reason = "stopped"
        try:
            self._boot = boot
            await on_ready(boot)
            reason = await self._watch(boot)
        finally:
            self._boot = None
            log.warning("engine.lost", boot_id=str(boot.boot_id), reason=reason)
            with contextlib.suppress(Exception):
                await on_lost(boot, reason)
            await boot.plugin.close()
        return self._clock.monotonic_s() - began

    async def _start(self) -> Boot:
        settings = self._settings
        boot_id, host_key = new_id(), secrets.token_urlsafe(32)
        front = FrontSettings(
            boot_id=str(boot_id),
            base=settings.base,
            inference_key=settings.inference_key,
            host_key=host_key,
            max_running=settings.max_num_seqs,
            margin=settings.margin,
            tenant_share=settings.tenant_share,
        )
        settings.run_dir.mkdir(parents=True, exist_ok=True)
        launch = plan_launch(settings, self._targets, front, settings.run_dir / "front.json")
        began = self._clock.monotonic_s()
        self._restart_because = ""
        process = self._process = await self._spawn(launch.arguments, launch.environment)
        local = "127.0.0.1" if settings.host == "0.0.0.0" else settings.host
        plugin = PluginClient(f"http://{local}:{launch.port}", host_key)
        try:
            await self._until_healthy(process, plugin, began + settings.start_timeout_s)
            started = await plugin.start()
        except BaseException:
            await plugin.close()
            raise
        boot = Boot(
            boot_id,
            settings.advertised(launch.port),
            process,
            plugin,
            f"vllm {started['vllm_version']} {settings.dtype}",
            ModuleTable.from_json(started["module_table"]),
            frozenset(started["capabilities"]),
            started["capacity"],
            started["slots"],
            await plugin.pulse(),
        )
        start_s = round(self._clock.monotonic_s() - began, 1)
        log.info("engine.started", boot_id=str(boot_id), url=boot.url, start_s=start_s, layout=boot.layout)
        return boot

    async def _spawn(self, arguments: tuple[str, ...], environment: Any) -> asyncio.subprocess.Process:
        if self.log_file.exists():
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
        with self.log_file.open("wb") as output:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "openmint_engine_host.child",
                str(os.getpid()),
                *arguments,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a group of its own, which is killed as a whole
            )

    async def _until_healthy(
        self, process: asyncio.subprocess.Process, plugin: PluginClient, deadline_s: float
    ) -> None:
        while not await plugin.health():
            if process.returncode is not None:
                raise EngineFailed(f"vLLM exited with {process.returncode} while starting, see {self.log_file}")
            if self._clock.monotonic_s() > deadline_s:
                raise EngineFailed(f"vLLM did not answer within {self._settings.start_timeout_s:.0f} s")
            await self._clock.sleep(0.25)

    async def _watch(self, boot: Boot) -> str:
        """Wait until the engine is no more; the reason in words."""
        asking = asyncio.create_task(self._ask_worker(boot))
        try:
            return await self._watch_front(boot)
        finally:
            asking.cancel()

    async def _ask_worker(self, boot: Boot) -> None:
        """Note when the worker last answered: the front goes on answering while a stopped worker serves nobody."""
        while True:
            with contextlib.suppress(EngineFailed):
                await boot.plugin.state(timeout_s=self._settings.hang_after_s)
                boot.worker_answered_s = self._clock.monotonic_s()
            await self._clock.sleep(ASK_WORKER_EVERY_S)

    async def _watch_front(self, boot: Boot) -> str:
        answered = boot.worker_answered_s = self._clock.monotonic_s()
        refused = 0
        while True:
            worker_silent_s = self._clock.monotonic_s() - boot.worker_answered_s
            if worker_silent_s > self._settings.hang_after_s:
                return f"its worker did not answer for {worker_silent_s:.0f} s"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PULSE_EVERY_S):
                    await asyncio.shield(boot.process.wait())
            if boot.process.returncode is not None:
                return f"the process ended with {boot.process.returncode}"
            if self._restart_because:
                return self._restart_because
            try:
                boot.pulse = await boot.plugin.pulse()
                answered, refused = self._clock.monotonic_s(), 0
            except EngineFailed:
                refused += 1
                silent_s = self._clock.monotonic_s() - answered
                if silent_s > self._settings.hang_after_s:
                    return f"it did not answer for {silent_s:.0f} s"
                if refused >= REFUSED_LIMIT and silent_s < PULSE_EVERY_S * (REFUSED_LIMIT + 2):
                    return "its port is closed although its process lives"

    async def _kill_group(self) -> None:
        """End vLLM and everything it started, whatever state it is in."""
        process, self._process = self._process, None
        if process is None:
            return
        for wanted in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, wanted)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_GRACE_S):
                    await process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def tail_of(path: Path) -> str:
    """The last lines of a log; vLLM says there why it did not start."""
    try:
        return path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
    except OSError:
        return ""
