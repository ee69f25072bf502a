"""Wiring of the keeper. Start it with `python -m openmint_keeper.app`; SIGTERM ends it after the task under way."""

import asyncio
import signal
from collections.abc import Coroutine

import structlog

from openmint.adapters.store import Store
from openmint.bus.connection import connect_bus
from openmint.bus.outbox import OutboxRelay
from openmint.catalog.database import Catalog
from openmint.clock import WallClock
from openmint.health import reporting_health
from openmint.logs import configure_logging
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
    try:
        rounds = Rounds(catalog, Store.open(settings.store_url), settings, WallClock())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, rounds.stop)
        log.info("keeper.started", every_s=settings.keeper_every_s)
        async with reporting_health({"catalog": lambda: catalog_answers(catalog)}):
            await _run_until_one_ends(rounds.run(), OutboxRelay(catalog.pool, bus, SERVICE).run())
        log.info("keeper.stopped")
    finally:
        await bus.close()
        await catalog.close()


async def _run_until_one_ends(*parts: Coroutine[object, object, None]) -> None:
    """Run the parts side by side until one returns or fails; a relay that died must not go unnoticed."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    """Command line."""
    settings = KeeperSettings().resolve()
    configure_logging(SERVICE, settings)
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
