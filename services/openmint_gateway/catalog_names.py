"""The resolver's way to the catalogue."""

from openmint.catalog import Catalog
from openmint.catalog.resolution import Resolution, resolve
from openmint.identifiers import PolicyModel


class CatalogNames:
    """Looks names up in Postgres."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def resolve(self, name: PolicyModel) -> Resolution:
        """Raises: NotFound, Quarantined, NotEligible, CatalogUnavailable."""
        async with self._catalog.connection() as conn:
            return await resolve(conn, name.policy.tenant, name.policy.name, name.selector)
