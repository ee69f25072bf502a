"""Wiring of the keeper. Start it with `python -m openmint_keeper.app`; SIGTERM ends it after the task under way."""

import asyncio
import signal

import structlog

from openmint.adapters.store import Store
from openmint.bus.broker import fact_subscriber, make_broker
from openmint.bus.connection import connect_bus
from openmint.bus.outbox import OutboxRelay
from openmint.catalog.database import Catalog
from openmint.clock import WallClock
from openmint.events import AdapterCondemned
from openmint.health import reporting_health
from openmint.logs import configure_logging
from openmint.side_by_side import run_until_one_ends
from openmint_keeper.condemned import quarantine_condemned
from openmint_keeper.due_work import SERVICE
from openmint_keeper.handlers import Rounds
from openmint_keeper.settings import KeeperSettings

log = structlog.get_logger()


async def catalog_answers(catalog: Catalog) -> bool:
    """Whether a trivial query comes back."""
    async with catalog.connection() as connection:
        return await connection.fetchval("select true") is True


async def serve(settings: KeeperSettings) -> None:
    """Keep until SIGTERM or SIGINT."""
    catalog = await Catalog.open(settings.postgres_dsn, max_size=4, application="openmint-keeper")
    bus = await connect_bus(settings, SERVICE)
    broker = make_broker(settings, SERVICE)

    async def on_condemned(fact: AdapterCondemned) -> None:
        await quarantine_condemned(catalog, fact)

    fact_subscriber(broker, SERVICE, AdapterCondemned)(on_condemned)
    try:
        await broker.start()
        rounds = Rounds(catalog, Store.open(settings.store_url), settings, WallClock())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, rounds.stop)
        log.info("keeper.started", every_s=settings.keeper_every_s)
        async with reporting_health({"catalog": lambda: catalog_answers(catalog)}):
            await run_until_one_ends(rounds.run(), OutboxRelay(catalog.pool, bus, SERVICE).run())
        log.info("keeper.stopped")
    finally:
        await broker.stop()
        await bus.close()
        await catalog.close()


def main() -> None:
    """Command line."""
    settings = KeeperSettings().resolve()
    configure_logging(SERVICE, settings)
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
