"""Wiring of the gateway. Start it with `python -m openmint_gateway.app`; SIGTERM lets requests under way finish."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncGenerator, Coroutine, Generator

import structlog
import uvicorn
from faststream.nats import NatsBroker

from openmint.adapters.store import Store
from openmint.bus.broker import make_broker
from openmint.bus.connection import Bus, connect_bus
from openmint.bus.outbox import OutboxRelay
from openmint.catalog import Catalog
from openmint.clock import WallClock
from openmint.endings import end
from openmint.engines.loads import watching_engines
from openmint.health import reporting_health
from openmint.identifiers import new_id
from openmint.local_stack.plan import secret_file
from openmint.logs import configure_logging
from openmint.tracing import start_tracing, stop_tracing
from openmint_gateway.alias_feed import AliasFeed
from openmint_gateway.asgi_input import AsgiApp
from openmint_gateway.base_models import BaseModels
from openmint_gateway.cache_salt import CacheSalts
from openmint_gateway.catalog_names import CatalogNames
from openmint_gateway.control.application import make_control_api
from openmint_gateway.control.front import ControlFront
from openmint_gateway.control.health import health_checks
from openmint_gateway.control.parts import ControlParts
from openmint_gateway.dispatcher import Dispatcher
from openmint_gateway.engine_client import AiohttpEngineClient
from openmint_gateway.fleet import Fleet
from openmint_gateway.forecast import Bounds
from openmint_gateway.handlers import subscribe
from openmint_gateway.hot_path import HotPath
from openmint_gateway.intake import SERVICE, Intake, IntakeLimits
from openmint_gateway.key_ring import KeyRing
from openmint_gateway.line import LineRules
from openmint_gateway.metrics import GatewayMetrics
from openmint_gateway.model_list import ModelList
from openmint_gateway.openapi import make_openapi
from openmint_gateway.request_log import RequestLog
from openmint_gateway.resolver import Resolver
from openmint_gateway.settings import GatewaySettings
from openmint_gateway.usage_meter import UsageMeter
from openmint_gateway.waiting_room import WaitingRoom

log = structlog.get_logger()

STOP_GRACE_S = 15
"""Requests under way may finish; streams that take longer are cut off."""


@contextlib.asynccontextmanager
async def gateway_app(settings: GatewaySettings, request_log: RequestLog | None = None) -> AsyncGenerator[AsgiApp]:
    """Everything of the gateway but its port: the ASGI application, with intake and relay running beside it."""
    async with contextlib.AsyncExitStack() as stack:
        catalog = await Catalog.open(
            settings.postgres_dsn, max_size=settings.pool_connections, application="openmint-gateway"
        )
        stack.push_async_callback(catalog.close)
        bus = await connect_bus(settings, SERVICE)
        stack.push_async_callback(bus.close)
        clock, metrics = WallClock(), GatewayMetrics()
        store = Store.open(settings.store_url)
        resolver = Resolver(
            CatalogNames(catalog), clock, names=settings.names_cached, absent_names=settings.absent_names_cached
        )
        await stack.enter_async_context(_running(AliasFeed(bus, resolver).run()))
        fleet = await _start_fleet(settings, bus, stack)
        client = AiohttpEngineClient(silence_deadline_s=settings.silence_deadline_s)
        stack.push_async_callback(client.close)
        room = WaitingRoom(_line_rules(settings), fleet, clock, settings.tenant_weights)
        metrics.watch(room)
        metrics.names.set_function(lambda: resolver.known)
        pepper = _pepper(settings)
        keys, bases = KeyRing(catalog, clock, pepper), BaseModels(catalog, clock)
        intake = Intake(catalog, store, IntakeLimits(settings.max_rank, settings.open_jobs_per_tenant))
        usage = UsageMeter(catalog)
        broker = make_broker(settings, SERVICE)
        subscribe(broker, intake, metrics)
        await _start_broker(broker, stack)
        await stack.enter_async_context(_running(OutboxRelay(catalog.pool, bus, SERVICE).run()))
        await stack.enter_async_context(_running(usage.run()))
        parts = ControlParts(settings, catalog, store, bus, intake, keys, resolver, bases, fleet, metrics, pepper)
        await stack.enter_async_context(reporting_health(health_checks(parts)))
        api = make_control_api(parts)
        api.openapi = make_openapi
        yield HotPath(
            ControlFront(api, settings.upload_bytes_max),
            keys=keys,
            resolver=resolver,
            bases=bases,
            models=ModelList(catalog, bases, resolver),
            dispatcher=Dispatcher(
                fleet,
                room,
                client,
                clock,
                engine_key=settings.engine_key.get_secret_value(),
                longest_wait_s=settings.wait_deadline_s,
            ),
            salts=CacheSalts(pepper),
            usage=usage,
            metrics=metrics,
            pool=settings.serve_pool,
            status_hold_s=settings.status_hold_s,
            comment_every_s=settings.comment_every_s,
            request_log=request_log or RequestLog(),
        )


class GatewayServer(uvicorn.Server):
    """uvicorn without its signal handlers: they raise the signal again at the end, and nothing would be flushed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave signals to `serve`."""
        yield


def make_server(app: AsgiApp) -> GatewayServer:
    """uvicorn as the gateway needs it: C parsers, no access log of its own, no buffering."""
    return GatewayServer(
        uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=STOP_GRACE_S,
        )
    )


async def serve(settings: GatewaySettings) -> None:
    """Serve until SIGTERM or SIGINT; a second one cuts requests off."""
    loop = asyncio.get_running_loop()
    with socket.create_server((settings.host, settings.port), backlog=2048) as listener:
        async with gateway_app(settings, RequestLog.open("gateway", settings)) as app:
            server = make_server(app)

            def stop() -> None:
                server.force_exit = server.should_exit
                server.should_exit = True

            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop)
            log.info("gateway.started", host=settings.host, port=listener.getsockname()[1])
            await server.serve(sockets=[listener])
    log.info("gateway.stopped")


def _line_rules(settings: GatewaySettings) -> LineRules:
    return LineRules(
        margin=settings.engine_margin,
        coherent_adapters=settings.coherent_adapters,
        adapter_turns=settings.adapter_turns,
        deadline_order=settings.deadline_order,
        bounds=Bounds(
            per_tenant=settings.waiting_per_tenant,
            in_all=settings.waiting_in_all,
            is_verdict_early=settings.early_verdict,
            verdict_share=settings.verdict_share,
        ),
    )


async def _start_fleet(settings: GatewaySettings, bus: Bus, stack: contextlib.AsyncExitStack) -> Fleet:
    name = f"{settings.part}-{new_id().hex[-12:]}"
    watching = watching_engines(bus, settings.engine_read_key.get_secret_value(), name)
    view, waiter = await stack.enter_async_context(watching)
    return Fleet(view, waiter, bus)


async def _start_broker(broker: NatsBroker, stack: contextlib.AsyncExitStack) -> None:
    stack.push_async_callback(broker.stop)
    await broker.start()


@contextlib.asynccontextmanager
async def _running(work: Coroutine[object, object, None]) -> AsyncGenerator[None]:
    """Run beside the block; an end by itself is a fault of ours and is said."""
    task = asyncio.create_task(work)
    task.add_done_callback(_say_if_failed)
    try:
        yield
    finally:
        await end(task)


def _say_if_failed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("gateway.part_failed", exc_info=task.exception())


def _pepper(settings: GatewaySettings) -> bytes:
    given = settings.key_pepper.get_secret_value()
    return (given or secret_file(settings.state_dir, "pepper.key")).encode()


def main() -> None:
    """Command line."""
    import uvloop

    settings = GatewaySettings().resolve()
    configure_logging(SERVICE, settings)
    start_tracing(SERVICE, settings)
    uvloop.run(serve(settings))
    stop_tracing()


if __name__ == "__main__":
    main()
