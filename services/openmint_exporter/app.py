"""Wiring of the exporter. Start it with `python -m openmint_exporter.app`; SIGTERM ends it after what is under way."""

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
from pathlib import Path

import structlog

from openmint.adapters.signing import SigningKey, keys_folder
from openmint.adapters.store import Store
from openmint.bus.broker import fact_subscriber, make_broker
from openmint.bus.connection import connect_bus
from openmint.bus.outbox import OutboxRelay
from openmint.catalog.database import Catalog
from openmint.catalog.outbox_rows import oldest_unsent_by_service
from openmint.errors import OpenmintError
from openmint.events import CheckpointSaved
from openmint.health import reporting_health
from openmint.logs import configure_logging
from openmint.side_by_side import run_until_one_ends
from openmint_exporter.handlers import Handlers
from openmint_exporter.settings import ExporterSettings
from openmint_exporter.worker import SERVICE, ExporterWorker, WorkerSettings

log = structlog.get_logger()

RELAY_GRACE_S = 2.0


async def catalog_answers(catalog: Catalog) -> bool:
    """Whether a trivial query comes back."""
    async with catalog.connection() as connection:
        return await connection.fetchval("select true") is True


async def relayed(catalog: Catalog) -> None:
    """Wait a moment until our facts are out: nobody may be there to tell it after us."""
    with contextlib.suppress(OpenmintError, TimeoutError):
        async with asyncio.timeout(RELAY_GRACE_S), catalog.connection() as connection:
            while SERVICE in await oldest_unsent_by_service(connection):
                await asyncio.sleep(0.05)


async def _work(worker: ExporterWorker, catalog: Catalog) -> None:
    await worker.run()
    await relayed(catalog)


async def serve(settings: ExporterSettings) -> None:
    """Export until SIGTERM or SIGINT."""
    key = SigningKey.load_or_create(settings.exporter_key_folder or keys_folder(settings.state_dir))
    wake = asyncio.Event()
    handlers = Handlers(wake)
    broker = make_broker(settings, SERVICE)
    fact_subscriber(broker, SERVICE, CheckpointSaved)(handlers.on_checkpoint_saved)
    catalog = await Catalog.open(settings.postgres_dsn, application="openmint-exporter")
    bus = await connect_bus(settings, SERVICE)
    try:
        with tempfile.TemporaryDirectory(prefix="openmint-exporter-") as folder:
            worker = ExporterWorker(
                WorkerSettings(
                    owner=f"{socket.gethostname()}-{os.getpid()}",
                    dtype=settings.exporter_dtype,
                    concurrency=settings.exporter_concurrency,
                    lease_s=settings.exporter_lease_s,
                    poll_s=settings.exporter_poll_s,
                    drain_s=settings.exporter_drain_s,
                    work_folder=Path(folder),
                ),
                catalog,
                Store.open(settings.store_url),
                key,
                wake,
            )
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, worker.stop)
            await broker.start()
            log.info("exporter.started", key_id=key.key_id, dtype=settings.exporter_dtype)
            async with reporting_health({"catalog": lambda: catalog_answers(catalog)}):
                await run_until_one_ends(_work(worker, catalog), OutboxRelay(catalog.pool, bus, SERVICE).run())
            log.info("exporter.stopped")
    finally:
        await broker.stop()
        await bus.close()
        await catalog.close()


def main() -> None:
    """Command line."""
    settings = ExporterSettings().resolve()
    configure_logging(SERVICE, settings)
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
