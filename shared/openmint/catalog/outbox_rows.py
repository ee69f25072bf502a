"""Facts on their way out, and messages already handled. `openmint.bus.outbox` relays what is appended here."""

from uuid import UUID

from openmint.bus.messages import MSG_ID, cloud_event_headers, encode
from openmint.catalog.database import Connection
from openmint.catalog.rows import dump_json
from openmint.events import Fact
from openmint.identifiers import new_id


async def append(conn: Connection, service: str, fact: Fact) -> None:
    """Have `service` publish this fact if, and only if, the caller's transaction commits."""
    await _insert(conn, service, fact, cloud_event_headers(fact, service))


async def append_again(conn: Connection, service: str, fact: Fact) -> None:
    """Have `service` publish a fact that was published before: same `ce-id`, new `Nats-Msg-Id`.

    The bus would drop it as a duplicate otherwise; a consumer still recognises it.
    """
    await _insert(conn, service, fact, cloud_event_headers(fact, service) | {MSG_ID: str(new_id())})


async def first_time(conn: Connection, consumer: str, event_id: UUID | str) -> bool:
    """True when `consumer` sees this event for the first time. Call it in the transaction of the effect.

    A second delivery that runs at the same moment waits here until the first has committed or failed.
    """
    inserted = await conn.fetchval(
        "insert into inbox (consumer, event_id) values ($1, $2) on conflict do nothing returning true",
        consumer,
        str(event_id),
    )
    return bool(inserted)


async def prune_inbox(conn: Connection, older_than_s: float, limit: int = 10_000) -> int:
    """Forget events handled longer ago than any stream keeps them; returns how many."""
    result = await conn.execute(
        "delete from inbox where ctid in (select ctid from inbox"
        " where received_at < clock_timestamp() - make_interval(secs => $1) limit $2)",
        older_than_s,
        limit,
    )
    return int(result.split()[-1])


async def oldest_unsent_s(conn: Connection) -> float:
    """How long the oldest row has waited for its relay, in seconds; 0 when there is none."""
    age_s = await conn.fetchval(
        "select extract(epoch from clock_timestamp() - created_at)::float8 from outbox order by id limit 1"
    )
    return float(age_s or 0.0)


async def oldest_unsent_by_service(conn: Connection) -> dict[str, float]:
    """For each service with facts to send: how long its oldest has waited, in seconds."""
    rows = await conn.fetch(
        """
        with recursive services as (
            (select service from outbox order by service limit 1)
            union all
            select (select o.service from outbox o where o.service > s.service order by o.service limit 1)
            from services s where s.service is not null
        )
        select s.service, extract(epoch from clock_timestamp() - (
            select o.created_at from outbox o where o.service = s.service order by o.id limit 1
        ))::float8 as age_s
        from services s where s.service is not null
        """
    )
    return {row["service"]: row["age_s"] for row in rows if row["age_s"] is not None}


async def _insert(conn: Connection, service: str, fact: Fact, headers: dict[str, str]) -> None:
    await conn.execute(
        "insert into outbox (service, event_id, subject, headers, payload) values ($1, $2, $3, $4, $5)",
        service,
        fact.event_id,
        fact.subject(),
        dump_json(headers),
        encode(fact),
    )
