"""Starts an engine host: `python -m openmint_engine_host.app`."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator, Callable

import structlog
from aiohttp import web
from prometheus_client import REGISTRY, start_http_server

from openmint.adapters.signing import TrustedKeys
from openmint.adapters.store import Store
from openmint.bases import read_base_folder
from openmint.bus.connection import Bus, connect_bus
from openmint.endings import end
from openmint.errors import BusUnavailable
from openmint.health import reporting_health
from openmint.logs import configure_logging
from openmint.tracing import start_tracing, stop_tracing
from openmint_engine_host.control import ControlServer
from openmint_engine_host.heartbeats import Announcer, ResidencyFeed, Silence, beat
from openmint_engine_host.host import EngineHost
from openmint_engine_host.launch import engine_targets, free_port
from openmint_engine_host.metrics import EngineCollector
from openmint_engine_host.settings import EngineHostSettings
from openmint_engine_host.spool import Spool
from openmint_engine_host.staging import Stager
from openmint_engine_host.store_source import StoreSource
from openmint_engine_host.supervisor import Supervisor

log = structlog.get_logger()

RECONNECT_EVERY_S = 1.0


async def serve(settings: EngineHostSettings) -> None:
    """Run one engine until cancelled; it is drained then, and its process group is gone when this returns."""
    base = await asyncio.to_thread(read_base_folder, settings.base_folder, settings.base)
    store = Store.open(settings.store_url)
    source = StoreSource(store, base, TrustedKeys.open(settings.state_dir))
    spool = Spool(settings.run_dir / "prepared", settings.spool_bytes)
    supervisor = Supervisor(settings, engine_targets(base.modules))

    def stager(resident_digests: Callable[[], set[str]]) -> Stager:
        return Stager(source, spool, settings.run_dir / "scratch", settings.staging_concurrency, resident_digests)

    async with _announcer(settings) as announcer:
        feed = ResidencyFeed(announcer, settings.engine_name, settings.base, base.digest, settings.pool_names)
        host = EngineHost(settings, base.digest, supervisor, stager, feed)
        if settings.metrics_port:
            REGISTRY.register(EngineCollector(host.figures))
            start_http_server(settings.metrics_port)
        control = ControlServer(host, settings.engine_control_key, settings.engine_read_key)
        async with _listening(control, settings) as port, reporting_health({"engine": host.is_ready}):
            host.control_url = settings.advertised(port)
            log.info("control.listening", url=host.control_url)
            running = asyncio.create_task(supervisor.run(host.on_ready, host.on_lost))
            beating = asyncio.create_task(beat(announcer, host.heartbeat))
            try:
                await asyncio.shield(running)
            finally:
                await _drain(host, settings.drain_s)
                await end(running, beating)


async def _drain(host: EngineHost, seconds: float) -> None:
    """Let requests in flight finish, for a bounded time."""
    with contextlib.suppress(Exception):
        await host.drain("the engine is stopping")
    deadline = asyncio.get_running_loop().time() + seconds
    while await host.in_flight() and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def _announcer(settings: EngineHostSettings) -> AsyncGenerator[Announcer]:
    if not settings.announce:
        yield Silence()
        return
    bus = await _connect(settings)
    try:
        yield bus
    finally:
        await bus.close()


async def _connect(settings: EngineHostSettings) -> Bus:
    """The bus, as soon as it is there; an engine without it could not be found."""
    while True:
        try:
            return await connect_bus(settings, f"engine-host-{settings.engine_name}")
        except BusUnavailable as error:
            log.warning("bus.awaited", detail=error.detail)
            await asyncio.sleep(RECONNECT_EVERY_S)


@contextlib.asynccontextmanager
async def _listening(control: ControlServer, settings: EngineHostSettings) -> AsyncGenerator[int]:
    port = settings.control_port or free_port(settings.host)
    runner = web.AppRunner(control.application(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, port).start()
        yield port
    finally:
        await runner.cleanup()


async def run() -> None:
    """Read the settings, serve until SIGTERM or SIGINT."""
    settings = EngineHostSettings()  # pyright: ignore[reportCallIssue]  # filled from the environment
    settings = settings.resolve(settings.parts_needed)
    configure_logging("engine_host", settings)
    start_tracing("engine_host", settings)
    structlog.contextvars.bind_contextvars(engine=settings.engine_name)
    serving = asyncio.create_task(serve(settings))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving
    stop_tracing()


def main() -> None:
    """Entry point."""
    asyncio.run(run())


if __name__ == "__main__":
    main()
