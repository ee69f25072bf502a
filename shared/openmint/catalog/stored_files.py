"""Which files of the store some row names, and since when the others have been seen.

Ages run on the database's clock: object stores and workers each have their own.
"""

import re
from collections.abc import Sequence
from uuid import UUID

from openmint.adapters.keys import CHECKPOINTS, DATASETS, EVALUATIONS, REVISIONS
from openmint.catalog.database import Connection

SWEPT_PREFIXES = (REVISIONS, CHECKPOINTS, DATASETS, EVALUATIONS)
"""Everything that openmint writes; nothing else in the store is ever looked at."""

_REVISION_KEY = re.compile(rf"{REVISIONS}([0-9a-f]{{64}})/[^/]+")
_EVALUATION_KEY = re.compile(rf"{EVALUATIONS}([0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}})/[^/]+")


async def unnamed_keys(conn: Connection, keys: Sequence[str]) -> list[str]:
    """Those of `keys` that no living row names, in the same order."""
    digests = {key: bytes.fromhex(match[1]) for key in keys if (match := _REVISION_KEY.fullmatch(key))}
    evaluations = {key: UUID(match[1]) for key in keys if (match := _EVALUATION_KEY.fullmatch(key))}
    rows = await conn.fetch(
        "select distinct digest from revisions where digest = any($1::bytea[]) and state <> 'deleted'",
        list(set(digests.values())),
    )
    living = {bytes(row["digest"]) for row in rows}
    rows = await conn.fetch(
        "select evaluation_id from evaluations where evaluation_id = any($1::uuid[])", list(set(evaluations.values()))
    )
    recorded = {row["evaluation_id"] for row in rows}
    named = {key for key, digest in digests.items() if digest in living}
    named.update(key for key, evaluation_id in evaluations.items() if evaluation_id in recorded)
    rows = await conn.fetch(
        "select key from checkpoints where key = any($1::text[]) and not files_gone"
        " union all select key from datasets where key = any($1::text[])",
        list(keys),
    )
    named.update(row["key"] for row in rows)
    return [key for key in keys if key not in named]


async def note_unnamed(conn: Connection, keys: Sequence[str], unnamed: Sequence[str]) -> None:
    """Of the `keys` just looked at, remember since when the `unnamed` ones have been so, and forget the others."""
    await conn.execute(
        "insert into unnamed_files (key) select unnest($1::text[]) on conflict do nothing", sorted(unnamed)
    )
    named = sorted(set(keys) - set(unnamed))
    await conn.execute("delete from unnamed_files where key = any($1::text[])", named)


async def long_unnamed(conn: Connection, older_than_s: float, limit: int = 1000) -> list[str]:
    """Files that have been unnamed for so long; the longest first."""
    rows = await conn.fetch(
        "select key from unnamed_files where first_seen_at < clock_timestamp() - make_interval(secs => $1)"
        " order by first_seen_at limit $2",
        older_than_s,
        limit,
    )
    return [row["key"] for row in rows]


async def forget_files(conn: Connection, keys: Sequence[str]) -> None:
    """These files are gone or named."""
    await conn.execute("delete from unnamed_files where key = any($1::text[])", list(keys))
