"""The process that starts the parts of a plan and keeps them running.

It knows the services by their module names only and imports none of them.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import structlog

from openmint.embedded.nats_server import EmbeddedNats
from openmint.embedded.postgres_server import EmbeddedPostgres
from openmint.errors import OpenmintError
from openmint.local_stack.plan import EngineSpec, StackPlan, plan_from_json, secret_file, stack_file
from openmint.local_stack.status import PartStatus
from openmint.logs import configure_logging
from openmint.provision import provision_all
from openmint.settings import CommonSettings

log = structlog.get_logger()

RESTART_FLOOR_S = 0.5
RESTART_CEILING_S = 15.0
"""A part that dies again and again is restarted after 0.5 s, doubling up to this."""

STABLE_AFTER_S = 30.0
"""A part that lived this long starts again from the floor."""

STOP_GRACE_S = 20.0
"""What SIGTERM is given before SIGKILL: one optimizer step and a checkpoint, with room."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process that the supervisor keeps alive."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]


@dataclass(slots=True)
class _Child:
    part: Part
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    started_at: float = 0.0
    backoff_s: float = RESTART_FLOOR_S
    next_start_at: float = 0.0
    log_file: Path = field(default_factory=Path)


class Supervisor:
    """Starts the parts of a plan and keeps them running until it is told to stop."""

    def __init__(self, plan: StackPlan) -> None:
        self._plan = plan
        self._state_dir = plan.state_dir.resolve()
        self._logs = self._state_dir / "logs"
        self._children: dict[str, _Child] = {}
        self._nats: EmbeddedNats | None = None
        self._postgres: EmbeddedPostgres | None = None
        self._stopping = asyncio.Event()
        self._ready = False
        self._note = "starting"
        self._started_at = time.time()

    async def run(self) -> None:
        """Bring everything up, then watch it until SIGTERM or SIGINT."""
        self._logs.mkdir(parents=True, exist_ok=True)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        try:
            settings = await self._start_stores()
            self._note = "provisioning"
            self._write_status()
            await provision_all(settings, self._plan.base_folders)
            for part in self._parts(settings):
                child = _Child(part, log_file=self._logs / f"{part.name}.log")
                self._children[part.name] = child
                self._start(child)
            self._note = "running"
            self._ready = True
            await self._watch()
        finally:
            await self._stop_all()

    async def _start_stores(self) -> CommonSettings:
        settings = CommonSettings(state_dir=self._state_dir)
        if not settings.nats_url:
            self._nats = EmbeddedNats(self._state_dir)
            await asyncio.to_thread(self._nats.start)
        if not settings.postgres_dsn:
            self._postgres = EmbeddedPostgres(self._state_dir)
            await asyncio.to_thread(self._postgres.start)
        return settings.resolve()

    def _parts(self, settings: CommonSettings) -> list[Part]:
        environment = self._environment(settings)
        parts = [self._engine_part(index, spec, environment) for index, spec in enumerate(self._plan.engines)]
        for service in self._plan.services:
            for copy in range(self._plan.copies.get(service, 1)):
                name = service if copy == 0 else f"{service}-{copy + 1}"
                parts.append(self._service_part(name, service, environment))
        return parts

    def _environment(self, settings: CommonSettings) -> dict[str, str]:
        return {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OPENMINT_STATE_DIR": str(self._state_dir),
            "OPENMINT_NATS_URL": settings.nats_url,
            "OPENMINT_NATS_USER": settings.nats_user,
            "OPENMINT_NATS_PASSWORD": settings.nats_password,
            "OPENMINT_POSTGRES_DSN": settings.postgres_dsn,
            "OPENMINT_STORE_URL": settings.store_url,
            "OPENMINT_ENGINE_KEY": secret_file(self._state_dir, "engine.key"),
            "OPENMINT_ENGINE_CONTROL_KEY": secret_file(self._state_dir, "engine-control.key"),
            "OPENMINT_ENGINE_READ_KEY": secret_file(self._state_dir, "engine-read.key"),
            "OPENMINT_KEY_PEPPER": secret_file(self._state_dir, "pepper.key"),
            **self._plan.extra_env,
        }

    def _service_part(self, name: str, service: str, environment: Mapping[str, str]) -> Part:
        own = {"OPENMINT_PART": name}
        if service == "gateway":
            own |= {"OPENMINT_HOST": "127.0.0.1", "OPENMINT_PORT": str(self._plan.gateway_port)}
        if service == "trainer":
            own |= {"OPENMINT_BASE_FOLDER": str(self._plan.base_folders[0])}
        return Part(name, (sys.executable, "-m", f"openmint_{service}.app"), {**environment, **own})

    def _engine_part(self, index: int, spec: EngineSpec, environment: Mapping[str, str]) -> Part:
        own = {
            "OPENMINT_PART": f"engine-{spec.name}",
            "OPENMINT_ENGINE_NAME": spec.name,
            "OPENMINT_DTYPE": spec.dtype,
            "OPENMINT_POOLS": ",".join(spec.pools),
            "OPENMINT_BASE_FOLDER": str(self._plan.base_folders[0]),
            "OPENMINT_CORE": str(index % (os.cpu_count() or 1)),
        }
        argv = (sys.executable, "-m", "openmint_engine_host.app")
        return Part(f"engine-{spec.name}", argv, {**environment, **own})

    def _start(self, child: _Child) -> None:
        with child.log_file.open("ab") as output:
            child.process = subprocess.Popen(
                child.part.argv, env=dict(child.part.env), stdout=output, stderr=subprocess.STDOUT, cwd=Path.cwd()
            )
        child.started_at = time.time()
        log.info("part.started", part=child.part.name, pid=child.process.pid, restarts=child.restarts)

    async def _watch(self) -> None:
        while not self._stopping.is_set():
            now = time.time()
            for child in self._children.values():
                self._look_after(child, now)
            await asyncio.to_thread(self._look_after_stores)
            self._write_status()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await self._stopping.wait()

    def _look_after(self, child: _Child, now: float) -> None:
        if child.process is None:
            if now >= child.next_start_at:
                child.restarts += 1
                self._start(child)
            return
        code = child.process.poll()
        if code is None:
            if now - child.started_at > STABLE_AFTER_S:
                child.backoff_s = RESTART_FLOOR_S
            return
        log.warning("part.ended", part=child.part.name, code=code, restart_in_s=child.backoff_s)
        child.process = None
        child.next_start_at = now + child.backoff_s
        child.backoff_s = min(child.backoff_s * 2, RESTART_CEILING_S)

    def _look_after_stores(self) -> None:
        for name, server in (("nats", self._nats), ("postgres", self._postgres)):
            if server is not None and not server.is_running():
                log.warning("part.ended", part=name)
                try:
                    server.start()
                except OpenmintError as error:
                    log.error("part.start_failed", part=name, error=error.detail)

    def _write_status(self) -> None:
        parts = [self._store_status("nats", self._nats), self._store_status("postgres", self._postgres)]
        parts += [_child_status(child) for child in self._children.values()]
        body = {
            "supervisor_pid": os.getpid(),
            "ready": self._ready,
            "note": self._note,
            "started_at": self._started_at,
            "gateway_url": f"http://127.0.0.1:{self._plan.gateway_port}",
            "parts": [asdict(part) for part in parts if part is not None],
        }
        target = stack_file(self._state_dir)
        temporary = target.with_suffix(".tmp")
        temporary.write_text(json.dumps(body, indent=1))
        temporary.replace(target)

    def _store_status(self, name: str, server: EmbeddedNats | EmbeddedPostgres | None) -> PartStatus | None:
        if server is None:
            return None
        state = "running" if server.is_running() else "restarting"
        return PartStatus(name, server.pid or 0, state, 0, self._started_at)

    async def _stop_all(self) -> None:
        self._ready = False
        self._note = "stopping"
        self._write_status()
        living = [c.process for c in self._children.values() if c.process is not None and c.process.poll() is None]
        for process in living:
            process.terminate()
        await asyncio.to_thread(_wait_or_kill, living)
        for server in (self._postgres, self._nats):
            if server is not None:
                await asyncio.to_thread(server.stop)
        stack_file(self._state_dir).unlink(missing_ok=True)


def _wait_or_kill(processes: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + STOP_GRACE_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _child_status(child: _Child) -> PartStatus:
    process = child.process
    if process is None:
        return PartStatus(child.part.name, 0, "restarting", child.restarts, child.started_at, str(child.log_file))
    return PartStatus(child.part.name, process.pid, "running", child.restarts, child.started_at)


def main() -> None:
    """Run the supervisor of a plan in the foreground."""
    parser = argparse.ArgumentParser(description="Supervisor of a local openmint stack")
    parser.add_argument("--plan", type=Path, required=True, help="the plan that openmint up wrote")
    plan = plan_from_json(parser.parse_args().plan)
    configure_logging("supervisor", CommonSettings(state_dir=plan.state_dir))
    asyncio.run(Supervisor(plan).run())


if __name__ == "__main__":
    main()
