"""The resolver's way to the catalogue."""

import asyncio

from openmint.catalog import Catalog
from openmint.catalog.resolution import Resolution, resolve
from openmint.errors import CatalogUnavailable
from openmint.identifiers import PolicyModel

ANSWER_DEADLINE_S = 3.0
"""A catalogue that hangs counts as away: a known name is then answered from memory, marked stale."""


class CatalogNames:
    """Looks names up in Postgres."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def resolve(self, name: PolicyModel) -> Resolution:
        """Raises: NotFound, Quarantined, NotEligible, CatalogUnavailable."""
        try:
            async with asyncio.timeout(ANSWER_DEADLINE_S), self._catalog.connection() as conn:
                return await resolve(conn, name.policy.tenant, name.policy.name, name.selector)
        except TimeoutError as error:
            raise CatalogUnavailable(f"{name} was not looked up in time", retry_after_s=1.0) from error
