"""Everything that must exist before a service starts: tables, streams, consumers, base models. Idempotent."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from openmint.bases import read_base_folder
from openmint.bus.connection import connect_bus
from openmint.bus.provision import ProvisionReport, provision
from openmint.catalog import bases
from openmint.catalog.database import Catalog
from openmint.catalog.migrate import migrate
from openmint.settings import CommonSettings


@dataclass(frozen=True, slots=True)
class Provisioned:
    """What a run of `openmint provision` found and changed."""

    migrations_applied: tuple[str, ...]
    bus: ProvisionReport
    bases_registered: tuple[str, ...]

    def is_unchanged(self) -> bool:
        """True when everything was there already."""
        return not self.migrations_applied and not self.bus.changed and not self.bases_registered


async def provision_all(settings: CommonSettings, base_folders: Sequence[Path]) -> Provisioned:
    """Migrate the catalogue, make streams and consumers, register the base models of these folders.

    Raises: CatalogUnavailable, BusUnavailable, Conflict when a base's name is taken by another digest.
    """
    applied = await migrate(settings.postgres_dsn)
    bus = await connect_bus(settings, "provision")
    try:
        report = await provision(bus)
    finally:
        await bus.close()
    registered: list[str] = []
    catalog = await Catalog.open(settings.postgres_dsn, min_size=1, max_size=1)
    try:
        for folder in base_folders:
            facts = await asyncio.to_thread(read_base_folder, folder)
            async with catalog.transaction() as connection:
                is_new = await bases.register_base(
                    connection, facts.name, facts.digest, str(folder.resolve()), facts.modules, asdict(facts)
                )
            if is_new:
                registered.append(facts.name)
    finally:
        await catalog.close()
    return Provisioned(tuple(applied), report, tuple(registered))
