"""Starts the scheduler: `python -m openmint_scheduler.app`."""

import asyncio
import contextlib
import gc
import os
import signal
import socket
from collections.abc import Callable

import structlog
from nats.aio.msg import Msg
from prometheus_client import start_http_server
from pydantic import ValidationError

from openmint.bus.connection import Bus, connect_bus
from openmint.clock import Clock, WallClock
from openmint.endings import end
from openmint.engines.vllm import HostEngine
from openmint.events import EngineHeartbeat, EngineLeft
from openmint.health import reporting_health
from openmint.logs import configure_logging
from openmint.tracing import start_tracing, stop_tracing
from openmint_scheduler.conductor import EngineFactory
from openmint_scheduler.settings import SchedulerSettings
from openmint_scheduler.shell import BaseShell

log = structlog.get_logger()

MAX_BASES = 64
"""Bases that heartbeats may bring up; a base is named in the settings or told of by an engine of ours."""

START_AGAIN_S = 1.0


class Scheduler:
    """All base models that this process leads or stands by for."""

    def __init__(self, bus: Bus, settings: SchedulerSettings, clock: Clock, engine_factory: EngineFactory) -> None:
        self.shells: dict[str, BaseShell] = {}
        self._bus = bus
        self._settings = settings
        self._clock = clock
        self._engine_factory = engine_factory
        self._owner = f"{socket.gethostname()}-{os.getpid()}"
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Listen to engines and stand by for the bases of the settings."""
        for base in self._settings.base_names:
            self._shell(base)
        await self._bus.nc.subscribe(EngineHeartbeat.subject_filter(), cb=self._on_heartbeat)
        await self._bus.nc.subscribe(EngineLeft.subject_filter(), cb=self._on_left)

    async def close(self) -> None:
        """Step back from every base, so that another may lead at once."""
        await end(*self._tasks.values())

    async def _on_heartbeat(self, message: Msg) -> None:
        try:
            beat = EngineHeartbeat.model_validate_json(message.data)
        except ValidationError as error:
            log.warning("heartbeat.unreadable", subject=message.subject, detail=str(error)[:300])
            return
        shell = self._shell(beat.base)
        if shell is not None:
            shell.on_heartbeat(beat)

    async def _on_left(self, message: Msg) -> None:
        try:
            fact = EngineLeft.model_validate_json(message.data)
        except ValidationError as error:
            log.warning("heartbeat.unreadable", subject=message.subject, detail=str(error)[:300])
            return
        if fact.base in self.shells:
            self.shells[fact.base].on_engine_left(fact)

    def _shell(self, base: str) -> BaseShell | None:
        shell = self.shells.get(base)
        if shell is None and len(self.shells) < MAX_BASES:
            shell = BaseShell(base, self._bus, self._settings, self._clock, self._engine_factory, self._owner)
            self.shells[base] = shell
            self._tasks[base] = asyncio.create_task(self._keep(shell))
        return shell

    async def _keep(self, shell: BaseShell) -> None:
        """A mistake of ours in one base ends its term, never the process that serves others."""
        while True:
            try:
                await shell.run()
            except Exception:
                log.exception("leader.broke", base=shell.base)
            await asyncio.sleep(START_AGAIN_S)


async def serve(settings: SchedulerSettings, stop: asyncio.Event) -> None:
    """Run until `stop` is set."""
    bus = await connect_bus(settings, "scheduler")

    def engine_at(control_url: str) -> HostEngine:
        return HostEngine(control_url, settings.engine_control_key)

    async def bus_answers() -> bool:
        return bus.nc.is_connected

    scheduler = Scheduler(bus, settings, WallClock(), engine_at)
    if settings.metrics_port:
        start_http_server(settings.metrics_port)
    async with reporting_health({"bus": bus_answers}):
        await scheduler.start()
        log.info("scheduler.started")
        await stop.wait()
        await scheduler.close()
    await bus.close()


async def run(make_settings: Callable[[], SchedulerSettings] = SchedulerSettings) -> None:
    """Run until SIGTERM or SIGINT."""
    settings = make_settings().resolve()
    # A million names make a full collection take 0.1 s, in which nobody is answered; there are few cycles here.
    gc.set_threshold(50_000, 20, 100)
    configure_logging("scheduler", settings)
    start_tracing("scheduler", settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(settings, stop)
    stop_tracing()


def main() -> None:
    """Run the service."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run())


if __name__ == "__main__":
    main()
