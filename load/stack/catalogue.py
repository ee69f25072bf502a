"""Seeding the catalogue: policies with one eligible revision each and the alias production, thousands in one statement.

Every row takes the transitions that the catalogue's own guards demand; only the announcing of each step is left out,
so that nothing is prefetched. Revisions carry no manifest: nothing on the way of a request reads it there.
"""

from collections.abc import Sequence

from load.stack.policies import Shelved
from openmint.catalog.database import Connection
from openmint.identifiers import digest_bytes

_TARGET_STATES = ("exported", "evaluating", "eligible")


async def seed_catalogue(connection: Connection, base: str, shelved: Sequence[Shelved]) -> None:
    """Write what is not there yet; the base must be registered. All or nothing."""
    async with connection.transaction():
        await connection.execute(
            "create temp table seeded (tenant text, name text, digest bytea, rank int, bytes bigint) on commit drop"
        )
        rows = [(s.policy.tenant, s.policy.name, digest_bytes(s.digest), s.rank, s.adapter_bytes) for s in shelved]
        await connection.copy_records_to_table("seeded", records=rows)
        await connection.execute(
            "insert into tenants (tenant) select distinct tenant from seeded on conflict do nothing"
        )
        await connection.execute(
            "insert into policies (tenant, name, base, next_number) select tenant, name, $1, 2 from seeded"
            " on conflict (tenant, name) do nothing",
            base,
        )
        await connection.execute(
            "create temp table made on commit drop as"
            " select p.policy_id, uuidv7() as revision_id, s.* from seeded s join policies p using (tenant, name)"
            " where not exists (select from revisions r where r.policy_id = p.policy_id)"
        )
        await connection.execute(
            "insert into revisions (revision_id, tenant, policy_id, base, state, fence, lease_until, source)"
            " select revision_id, tenant, policy_id, $1, 'exporting', 1, clock_timestamp() + interval '1 hour', 'load'"
            " from made",
            base,
        )
        for state in _TARGET_STATES:
            await connection.execute(
                f"update revisions r set state = '{state}', number = 1, digest = m.digest, rank = m.rank,"
                " adapter_bytes = m.bytes from made m where r.revision_id = m.revision_id"
            )
        await connection.execute(
            "update revisions r set lease_until = null from made m where r.revision_id = m.revision_id"
        )
        await connection.execute(
            "select count(*) from made m,"
            " lateral move_alias(m.policy_id, 'production', m.revision_id, 0, 'load', 'seeded')"
        )
    await connection.execute("vacuum analyze policies, revisions, aliases")
