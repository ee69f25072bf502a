"""Usage on its way to the catalogue: summed in memory and written every two seconds, off the hot path."""

import asyncio

import structlog

from openmint.catalog import Catalog, usage
from openmint.catalog.usage import UsageRow
from openmint.errors import OpenmintError

log = structlog.get_logger()

FLUSH_EVERY_S = 2.0
"""What a crash of this process can lose of the count."""

MAX_SUMS = 100_000

_Key = tuple[str, str, str | None]


class UsageMeter:
    """Sums by tenant, model and revision."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._sums: dict[_Key, tuple[int, int, int]] = {}

    def add(self, tenant: str, model: str, digest: str | None, prompt_tokens: int, completion_tokens: int) -> None:
        """Count one answered request."""
        key = (tenant, model, digest)
        if key not in self._sums and len(self._sums) >= MAX_SUMS:
            log.error("usage.dropped", tenant=tenant, model=model)
            return
        requests, prompts, completions = self._sums.get(key, (0, 0, 0))
        self._sums[key] = (requests + 1, prompts + prompt_tokens, completions + completion_tokens)

    async def flush(self) -> None:
        """Write what there is; when the catalogue does not answer it is kept for the next time."""
        taken, self._sums = self._sums, {}
        if not taken:
            return
        rows = [UsageRow(*key, *amounts) for key, amounts in taken.items()]
        try:
            async with self._catalog.transaction() as conn:
                await usage.record_usage(conn, rows)
        except OpenmintError as error:
            log.warning("usage.kept_back", error=error.detail, sums=len(taken))
            for key, amounts in taken.items():
                later = self._sums.get(key, (0, 0, 0))
                self._sums[key] = (amounts[0] + later[0], amounts[1] + later[1], amounts[2] + later[2])

    async def run(self) -> None:
        """Flush until cancelled, and once more then."""
        try:
            while True:
                await asyncio.sleep(FLUSH_EVERY_S)
                try:
                    await self.flush()
                except Exception:
                    log.exception("usage.flush_failed")
        finally:
            await self.flush()
