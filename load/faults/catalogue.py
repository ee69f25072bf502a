"""What the catalogue says of revisions."""

from collections.abc import Sequence

import asyncpg

from load.stack.openmint_stack import OpenmintStack
from openmint.identifiers import digest_bytes, digest_from_bytes


async def states_of(stack: OpenmintStack, digests: Sequence[str]) -> dict[str, str]:
    """The state of each revision by its digest."""
    connection = await asyncpg.connect(stack.settings.postgres_dsn)
    try:
        rows = await connection.fetch(
            "select digest, state::text from revisions where digest = any($1::bytea[])",
            [digest_bytes(digest) for digest in digests],
        )
    finally:
        await connection.close()
    return {digest_from_bytes(row["digest"]): row["state"] for row in rows}
