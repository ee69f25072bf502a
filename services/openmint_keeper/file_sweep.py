"""Files that may go: of superseded checkpoints, of retired revisions, and those that no row has named for a day."""

import structlog

from openmint.adapters.keys import revision_prefix
from openmint.adapters.store import Store
from openmint.catalog import stored_files
from openmint.catalog.checkpoints import mark_files_gone, superseded_checkpoints
from openmint.catalog.database import Catalog
from openmint.catalog.revisions import mark_deleted, retired_revisions
from openmint.errors import NotEligible

log = structlog.get_logger()

KEYS_PER_QUERY = 1000


async def drop_superseded_checkpoints(catalog: Catalog, store: Store, ended_for_s: float) -> int:
    """Delete the files of all but the last checkpoint of ended jobs; returns how many.

    The row says so first: a death in between leaves a file that no row names.
    """
    async with catalog.connection() as connection:
        checkpoints = await superseded_checkpoints(connection, ended_for_s)
        for checkpoint in checkpoints:
            await mark_files_gone(connection, checkpoint.checkpoint_id)
            await store.delete(checkpoint.key)
    if checkpoints:
        log.info("checkpoints.dropped", count=len(checkpoints))
    return len(checkpoints)


async def delete_retired_revisions(catalog: Catalog, store: Store, retired_for_s: float) -> int:
    """Delete the files of revisions retired for so long, and leave their tombstones; returns how many.

    Bytes that another revision shares stay for that one.
    """
    deleted = 0
    async with catalog.connection() as connection:
        for revision in await retired_revisions(connection, retired_for_s):
            try:
                await mark_deleted(connection, revision.revision_id)
            except NotEligible:
                continue  # Another keeper was faster.
            deleted += 1
            assert revision.digest is not None
            keys = await store.list(revision_prefix(revision.digest))
            for key in await stored_files.unnamed_keys(connection, keys):
                await store.delete(key)
            log.info("revision.deleted", revision_id=str(revision.revision_id), revision=revision.digest)
    return deleted


async def sweep_orphans(catalog: Catalog, store: Store, older_than_s: float) -> int:
    """Delete files that no row has named for so long, by the database's clock; returns how many.

    Any file is looked at twice: when it is first seen unnamed, and again right before it is deleted.
    """
    for prefix in stored_files.SWEPT_PREFIXES:
        keys = await store.list(prefix)
        for start in range(0, len(keys), KEYS_PER_QUERY):
            chunk = keys[start : start + KEYS_PER_QUERY]
            async with catalog.transaction() as connection:
                unnamed = await stored_files.unnamed_keys(connection, chunk)
                await stored_files.note_unnamed(connection, chunk, unnamed)
    async with catalog.connection() as connection:
        suspects = await stored_files.long_unnamed(connection, older_than_s)
        orphans = await stored_files.unnamed_keys(connection, suspects)
        for key in orphans:
            await store.delete(key)
        await stored_files.forget_files(connection, suspects)
    await store.delete_partial(older_than_s)
    if orphans:
        log.info("orphans.deleted", count=len(orphans), first=orphans[0])
    return len(orphans)
