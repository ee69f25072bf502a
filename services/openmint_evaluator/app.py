"""Wiring of the evaluator. Start it with `python -m openmint_evaluator.app`; on SIGTERM it gives its work back."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx
import structlog

from openmint.adapters.signing import TrustedKeys
from openmint.adapters.store import Store
from openmint.bus.broker import fact_subscriber, make_broker
from openmint.bus.connection import connect_bus
from openmint.bus.outbox import OutboxRelay
from openmint.bus.tail import tail
from openmint.catalog.database import Catalog
from openmint.clock import WallClock
from openmint.endings import end
from openmint.engines.loads import watching_engines
from openmint.events import EngineJoined, RevisionExported
from openmint.health import reporting_health
from openmint.logs import configure_logging
from openmint_evaluator.bench import BenchBuilder
from openmint_evaluator.engine_builds import EngineBuilds
from openmint_evaluator.evaluate import Evaluator, Pools
from openmint_evaluator.handlers import Handlers
from openmint_evaluator.loaded_engines import LoadedEngines
from openmint_evaluator.reference_client import ReferencePool, open_references
from openmint_evaluator.settings import EvaluatorSettings
from openmint_evaluator.stored_files import StoredFiles
from openmint_evaluator.worker import SERVICE, EvaluationWorker, WorkerLimits

log = structlog.get_logger()

IDLE_CHECK_S = 5.0


async def catalog_answers(catalog: Catalog) -> bool:
    """Whether a trivial query comes back."""
    async with catalog.connection() as connection:
        return await connection.fetchval("select true") is True


@dataclass(frozen=True, slots=True)
class WiredEvaluator:
    """A worker that is ready to run, and the tasks that must run beside it."""

    worker: EvaluationWorker
    background: tuple[asyncio.Task[None], ...]


@asynccontextmanager
async def wired_evaluator(settings: EvaluatorSettings) -> AsyncGenerator[WiredEvaluator]:
    """Everything but the worker's own loop: connections, views, relay, subscriptions."""
    clock = WallClock()
    async with AsyncExitStack() as stack:
        catalog = await Catalog.open(settings.postgres_dsn, application="openmint-evaluator")
        stack.push_async_callback(catalog.close)
        bus = await connect_bus(settings, SERVICE)
        stack.push_async_callback(bus.close)
        http = await stack.enter_async_context(_engine_client(settings))
        references = await stack.enter_async_context(
            open_references(settings.evaluator_reference_timeout_s, settings.evaluator_reference_idle_s)
        )
        _, waiter = await stack.enter_async_context(watching_engines(bus, settings.engine_read_key))
        builds = EngineBuilds(http)
        files = StoredFiles(Store.open(settings.store_url), TrustedKeys.open(settings.state_dir))
        engines = LoadedEngines(
            waiter,
            builds,
            http,
            settings.evaluator_load_deadline_s,
            settings.evaluator_engine_patience_s,
            clock,
        )
        evaluator = Evaluator(
            files,
            engines,
            BenchBuilder(files, references, settings.evaluator_probe_tokens),
            Pools(settings.evaluator_gate_pool or None, settings.evaluator_serve_pool),
            settings.evaluator_concurrency,
            clock,
        )
        limits = WorkerLimits(
            lease_s=settings.evaluator_lease_s,
            poll_s=settings.evaluator_poll_s,
            retry_s=settings.evaluator_retry_s,
            max_tries=settings.evaluator_max_tries,
        )
        owner = f"{socket.gethostname()}-{os.getpid()}"
        worker = EvaluationWorker(catalog, files, evaluator, owner, limits, clock)
        broker = make_broker(settings, SERVICE)
        fact_subscriber(broker, SERVICE, RevisionExported)(Handlers(worker.wake).on_revision_exported)
        await broker.start()
        stack.push_async_callback(broker.stop)
        background = tuple(
            asyncio.create_task(work)
            for work in (
                OutboxRelay(catalog.pool, bus, SERVICE).run(),
                tail(bus, [EngineJoined], builds.on_engine_joined, deliver="last_per_subject", stream="RESIDENCY"),
                _end_idle_references(references),
            )
        )
        stack.push_async_callback(end, *background)
        await stack.enter_async_context(reporting_health({"catalog": lambda: catalog_answers(catalog)}))
        yield WiredEvaluator(worker, background)


async def serve(settings: EvaluatorSettings) -> None:
    """Run an evaluator until SIGTERM or SIGINT. What runs beside the worker must not end: its error ends us too."""
    async with wired_evaluator(settings) as wired:
        working = asyncio.create_task(wired.worker.run())
        stop = asyncio.Event()
        stopping = asyncio.create_task(stop.wait())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        log.info("evaluator.started", gate_pool=settings.evaluator_gate_pool, serve_pool=settings.evaluator_serve_pool)
        await asyncio.wait({working, stopping, *wired.background}, return_when=asyncio.FIRST_COMPLETED)
        await end(working, stopping)
        for task in wired.background:
            if task.done():
                task.result()
        log.info("evaluator.stopped")


def _engine_client(settings: EvaluatorSettings) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        headers={"authorization": f"Bearer {settings.engine_key}"},
        timeout=settings.evaluator_request_timeout_s,
        trust_env=False,
    )


async def _end_idle_references(references: ReferencePool) -> None:
    while True:
        await asyncio.sleep(IDLE_CHECK_S)
        await references.end_when_idle()


def main() -> None:
    """Command line."""
    settings = EvaluatorSettings().resolve()
    configure_logging(SERVICE, settings)
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
