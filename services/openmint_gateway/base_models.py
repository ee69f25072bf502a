"""The base models that are registered, remembered for a short time: there are few, and they hardly ever change."""

from openmint.catalog import Catalog, bases
from openmint.catalog.rows import Base
from openmint.clock import Clock
from openmint.errors import CatalogUnavailable, NotFound

FRESH_S = 30.0
ABSENT_FRESH_S = 2.0


class BaseModels:
    """All base models by name."""

    def __init__(self, catalog: Catalog, clock: Clock) -> None:
        self._catalog = catalog
        self._clock = clock
        self._known: dict[str, Base] = {}
        self._checked_s = float("-inf")

    async def all(self, fresh_s: float = FRESH_S) -> dict[str, Base]:
        """With the catalogue down, those that were known last. Raises: CatalogUnavailable when none are."""
        if self._clock.monotonic_s() - self._checked_s > fresh_s:
            try:
                async with self._catalog.connection() as conn:
                    self._known = {base.name: base for base in await bases.list_bases(conn)}
                self._checked_s = self._clock.monotonic_s()
            except CatalogUnavailable:
                if not self._known:
                    raise
        return self._known

    async def find(self, name: str) -> Base:
        """Raises: NotFound, CatalogUnavailable."""
        base = (await self.all()).get(name) or (await self.all(ABSENT_FRESH_S)).get(name)
        if base is None:
            raise NotFound(f"there is no base model {name!r}; a policy is written tenant/policy", field="model")
        return base
