"""Who leads: one scheduler per base model, by a lock that ends with the connection that took it."""

from openmint.catalog.database import Connection, value_of

LEADER_LOCK_CLASS = 0x6C656164
"""The first half of the two-part advisory lock; `lead` in ASCII."""


async def take_leadership(conn: Connection, base: str, owner: str) -> int | None:
    """Become the leader for `base` and get a new epoch, or None while another leads.

    `conn` must stay open and in the caller's hand for as long as it leads: when it breaks, so does the lead, and the
    next leader's higher epoch is what engines obey.
    """
    got = await conn.fetchval("select pg_try_advisory_lock($1, hashtext($2))", LEADER_LOCK_CLASS, base)
    if not got:
        return None
    epoch: int = await value_of(
        conn,
        "insert into leaders (base, owner, epoch) values ($1, $2, 1)"
        " on conflict (base) do update set owner = excluded.owner, epoch = leaders.epoch + 1,"
        " taken_at = clock_timestamp() returning epoch",
        base,
        owner,
    )
    return epoch


async def still_leads(conn: Connection, base: str, epoch: int) -> bool:
    """True while nobody has taken a higher epoch; raises as any query does when the connection is gone."""
    return bool(await conn.fetchval("select epoch = $2 from leaders where base = $1", base, epoch))


async def give_up_leadership(conn: Connection, base: str) -> None:
    """Let another lead, on a graceful stop."""
    await conn.execute("select pg_advisory_unlock($1, hashtext($2))", LEADER_LOCK_CLASS, base)
