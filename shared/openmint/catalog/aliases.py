"""Aliases: movable names with a version, moved by compare-and-set in one SQL function, and their history."""

from uuid import UUID

import asyncpg

from openmint.catalog.database import Connection
from openmint.catalog.outbox_rows import append
from openmint.catalog.rows import Alias, AliasHistoryEntry, AliasMove, fields_of
from openmint.errors import AliasConflict, AliasFrozen, NotEligible, NotFound, OpenmintError
from openmint.events import AliasMoved, AliasTarget
from openmint.identifiers import check_alias, digest_from_bytes

_REFUSALS: dict[str, type[OpenmintError]] = {
    "OM404": NotFound,
    "OM409": NotEligible,
    "OM410": AliasConflict,
    "OM423": AliasFrozen,
}
"""What the SQL functions raise, by SQLSTATE."""

_ALIAS_COLUMNS = "a.policy_id, a.alias, a.revision_id, r.digest, r.number, a.version, a.frozen, a.moved_at"


async def move_alias(
    conn: Connection,
    *,
    service: str,
    policy_id: UUID,
    alias: str,
    revision_id: UUID,
    expected_version: int | None,
    actor: str,
    reason: str,
) -> AliasMove:
    """Let the alias point to an eligible revision of its policy, and tell it in the same transaction.

    `expected_version` is the version that the caller has read: 0 for an alias that must not exist yet, None for
    whatever it is. A move to where it points already changes nothing and tells nothing.
    Raises: AliasConflict, AliasFrozen, NotEligible, NotFound, BadName.
    """
    check_alias(alias)
    async with conn.transaction():
        row = await _call(
            conn,
            "select * from move_alias($1, $2, $3, $4, $5, $6)",
            policy_id,
            alias,
            revision_id,
            expected_version,
            actor,
            reason,
        )
        return await _tell(
            conn, service, policy_id, alias, row["alias_version"], revision_id, row["previous"], False, row["changed"],
            actor, reason,
        )  # fmt: skip


async def roll_back(
    conn: Connection,
    *,
    service: str,
    policy_id: UUID,
    alias: str,
    actor: str,
    reason: str,
    to_number: int | None = None,
    expected_version: int | None = None,
) -> AliasMove:
    """Move the alias to the revision that it pointed to before, or to the given number: one more move.

    Before means the latest in its history that is another one and still eligible; so a second roll back returns to
    where the first one came from.
    Raises: NotFound, NotEligible when there is nothing to go back to, AliasConflict, AliasFrozen.
    """
    async with conn.transaction():
        present = await find_alias(conn, policy_id, alias)
        if to_number is not None:
            revision_id = await conn.fetchval(
                "select revision_id from revisions where policy_id = $1 and number = $2", policy_id, to_number
            )
            if revision_id is None:
                raise NotFound(f"the policy has no revision number {to_number}", field="to_number")
        else:
            revision_id = await conn.fetchval(
                "select h.revision_id from alias_history h join revisions r using (revision_id)"
                " where h.policy_id = $1 and h.alias = $2 and h.revision_id <> $3 and r.state = 'eligible'"
                " order by h.version desc limit 1",
                policy_id,
                alias,
                present.revision_id,
            )
            if revision_id is None:
                raise NotEligible(f"alias {alias!r} has no earlier revision that is eligible")
        return await move_alias(
            conn,
            service=service,
            policy_id=policy_id,
            alias=alias,
            revision_id=revision_id,
            # What was read above decides where to go; if it moved meanwhile, the answer would be another one.
            expected_version=present.version if expected_version is None else expected_version,
            actor=actor,
            reason=reason,
        )


async def freeze(
    conn: Connection,
    *,
    service: str,
    policy_id: UUID,
    alias: str,
    actor: str,
    reason: str,
    expected_version: int | None = None,
) -> AliasMove:
    """Let nobody move the alias until it is thawed. Its version rises. Raises: NotFound, AliasConflict."""
    return await _set_frozen(conn, service, policy_id, alias, True, expected_version, actor, reason)


async def thaw(
    conn: Connection,
    *,
    service: str,
    policy_id: UUID,
    alias: str,
    actor: str,
    reason: str,
    expected_version: int | None = None,
) -> AliasMove:
    """Let the alias be moved again. Its version rises. Raises: NotFound, AliasConflict."""
    return await _set_frozen(conn, service, policy_id, alias, False, expected_version, actor, reason)


async def find_alias(conn: Connection, policy_id: UUID, alias: str) -> Alias:
    """Raises: NotFound."""
    row = await conn.fetchrow(
        f"select {_ALIAS_COLUMNS} from aliases a join revisions r using (revision_id)"
        " where a.policy_id = $1 and a.alias = $2",
        policy_id,
        alias,
    )
    if row is None:
        raise NotFound(f"the policy has no alias {alias!r}")
    return _alias_from(row)


async def list_aliases(conn: Connection, policy_id: UUID) -> list[Alias]:
    """All aliases of a policy, by name."""
    rows = await conn.fetch(
        f"select {_ALIAS_COLUMNS} from aliases a join revisions r using (revision_id)"
        " where a.policy_id = $1 order by a.alias",
        policy_id,
    )
    return [_alias_from(row) for row in rows]


async def history(conn: Connection, policy_id: UUID, alias: str, limit: int = 100) -> list[AliasHistoryEntry]:
    """The moves of an alias, newest first."""
    rows = await conn.fetch(
        "select h.version, h.revision_id, r.number, r.digest, h.previous_revision_id, h.frozen, h.actor, h.reason,"
        " h.moved_at from alias_history h join revisions r using (revision_id)"
        " where h.policy_id = $1 and h.alias = $2 order by h.version desc limit $3",
        policy_id,
        alias,
        limit,
    )
    return [AliasHistoryEntry(**fields_of(row, digest=digest_from_bytes(row["digest"]))) for row in rows]


async def _set_frozen(
    conn: Connection,
    service: str,
    policy_id: UUID,
    alias: str,
    frozen: bool,
    expected_version: int | None,
    actor: str,
    reason: str,
) -> AliasMove:
    async with conn.transaction():
        row = await _call(
            conn,
            "select * from set_alias_frozen($1, $2, $3, $4, $5, $6)",
            policy_id,
            alias,
            frozen,
            expected_version,
            actor,
            reason,
        )
        return await _tell(
            conn, service, policy_id, alias, row["alias_version"], row["revision"], row["revision"], frozen,
            row["changed"], actor, reason,
        )  # fmt: skip


async def _call(conn: Connection, query: str, *arguments: object) -> asyncpg.Record:
    try:
        # A savepoint, so that a refusal leaves the caller's transaction usable.
        async with conn.transaction():
            row = await conn.fetchrow(query, *arguments)
    except asyncpg.PostgresError as error:
        refusal = _REFUSALS.get(str(getattr(error, "sqlstate", "")))
        if refusal is None:
            raise
        raise refusal(str(error)) from error
    assert row is not None
    return row


async def _tell(
    conn: Connection,
    service: str,
    policy_id: UUID,
    alias: str,
    version: int,
    revision_id: UUID,
    previous_id: UUID | None,
    frozen: bool,
    changed: bool,
    actor: str,
    reason: str,
) -> AliasMove:
    policy = await conn.fetchrow("select tenant, name, base from policies where policy_id = $1", policy_id)
    assert policy is not None
    target = await _target(conn, revision_id)
    previous = None if previous_id is None else await _target(conn, previous_id)
    if changed:
        fact = AliasMoved(
            tenant=policy["tenant"],
            policy_id=policy_id,
            policy=policy["name"],
            base=policy["base"],
            alias=alias,
            alias_version=version,
            targets=[target],
            previous=[] if previous is None else [previous],
            frozen=frozen,
            actor=actor,
            reason=reason,
        )
        await append(conn, service, fact)
    return AliasMove(policy_id, policy["name"], alias, version, target, previous, frozen, changed)


async def _target(conn: Connection, revision_id: UUID) -> AliasTarget:
    row = await conn.fetchrow("select revision_id, digest, number from revisions where revision_id = $1", revision_id)
    assert row is not None
    return AliasTarget(revision_id=revision_id, digest=digest_from_bytes(row["digest"]), number=row["number"])


def _alias_from(row: asyncpg.Record) -> Alias:
    return Alias(**fields_of(row, digest=digest_from_bytes(row["digest"])))
