"""Revisions that the scheduler found bad beyond doubt: taken out of use, so that no engine gets them again."""

import structlog

from openmint.catalog import revisions
from openmint.catalog.database import Catalog
from openmint.events import AdapterCondemned
from openmint_keeper.due_work import SERVICE

log = structlog.get_logger()


async def quarantine_condemned(catalog: Catalog, fact: AdapterCondemned) -> int:
    """Quarantine every revision of the digest; how many. Twice is as once."""
    async with catalog.transaction() as connection:
        found = await revisions.quarantinable(connection, fact.base, fact.digest)
        for revision_id in found:
            await revisions.quarantine(connection, revision_id, fact.reason, SERVICE)
    log.warning("revision.quarantined", revision=fact.digest, revisions=len(found), reason=fact.reason)
    return len(found)
