"""From a caller's name to one revision: one prepared query per kind of selector."""

from dataclasses import dataclass
from uuid import UUID

import asyncpg

from openmint.catalog.database import Connection
from openmint.catalog.rows import RevisionState
from openmint.errors import NotEligible, NotFound, Quarantined
from openmint.events import AliasTarget
from openmint.identifiers import ByAlias, ByDigest, ByNumber, ByStep, Selector, digest_bytes, digest_from_bytes

ADDRESSABLE_STATES = frozenset(
    {RevisionState.EXPORTED, RevisionState.EVALUATING, RevisionState.ELIGIBLE, RevisionState.REJECTED}
)
"""What its own tenant may ask for by number, step or digest. Aliases point to eligible revisions alone."""

_COLUMNS = "p.policy_id, p.base, r.revision_id, r.digest, r.number, r.step, r.state, r.rank, r.adapter_bytes, r.reason"

_BY_ALIAS = (
    f"select {_COLUMNS}, a.version as alias_version from policies p"
    " left join aliases a on a.policy_id = p.policy_id and a.alias = $3"
    " left join revisions r on r.revision_id = a.revision_id where p.tenant = $1 and p.name = $2"
)
_BY_NUMBER = (
    f"select {_COLUMNS}, null::bigint as alias_version from policies p"
    " left join revisions r on r.policy_id = p.policy_id and r.number = $3 where p.tenant = $1 and p.name = $2"
)
_BY_STEP = (
    f"select {_COLUMNS}, null::bigint as alias_version from policies p"
    " left join lateral (select * from revisions s where s.policy_id = p.policy_id and s.step = $3"
    "  and s.number is not null order by s.number desc limit 1) r on true where p.tenant = $1 and p.name = $2"
)
# Two jobs of a policy may end with the same bytes; the newest revision then stands for the digest.
_BY_DIGEST = (
    f"select {_COLUMNS}, null::bigint as alias_version from policies p"
    " left join lateral (select * from revisions s where s.digest = $3 and s.policy_id = p.policy_id"
    "  order by s.number desc limit 1) r on true where p.tenant = $1 and p.name = $2"
)


@dataclass(frozen=True, slots=True)
class Resolution:
    """The revision that a name means now. `alias_version` and `targets` are given for an alias alone."""

    policy_id: UUID
    base: str
    revision_id: UUID
    digest: str
    number: int
    step: int
    state: RevisionState
    rank: int
    adapter_bytes: int
    alias_version: int | None
    targets: tuple[AliasTarget, ...]


async def resolve(conn: Connection, tenant: str, policy: str, selector: Selector) -> Resolution:
    """The revision that `tenant/policy@selector` means.

    Raises: NotFound (also another tenant's policy), Quarantined with its reason, NotEligible when the revision is
    retired.
    """
    name = f"{tenant}/{policy}"
    row = await _fetch(conn, tenant, policy, selector)
    if row is None:
        raise NotFound(f"there is no policy {name}", field="model")
    if row["revision_id"] is None:
        raise NotFound(f"policy {name} has no {_words(selector)}", field="model")
    state = RevisionState(row["state"])
    if state is RevisionState.QUARANTINED:
        raise Quarantined(f"{name}@{selector} is quarantined: {row['reason']}", field="model")
    if state not in ADDRESSABLE_STATES:
        raise NotEligible(f"{name}@{selector} is {state}", field="model")
    digest = digest_from_bytes(row["digest"])
    targets: tuple[AliasTarget, ...] = ()
    if row["alias_version"] is not None:
        targets = (AliasTarget(revision_id=row["revision_id"], digest=digest, number=row["number"]),)
    return Resolution(
        policy_id=row["policy_id"],
        base=row["base"],
        revision_id=row["revision_id"],
        digest=digest,
        number=row["number"],
        step=row["step"],
        state=state,
        rank=row["rank"],
        adapter_bytes=row["adapter_bytes"],
        alias_version=row["alias_version"],
        targets=targets,
    )


async def _fetch(conn: Connection, tenant: str, policy: str, selector: Selector) -> asyncpg.Record | None:
    match selector:
        case ByAlias(alias):
            return await conn.fetchrow(_BY_ALIAS, tenant, policy, alias)
        case ByNumber(number):
            return await conn.fetchrow(_BY_NUMBER, tenant, policy, min(number, MAX_INTEGER))
        case ByStep(step):
            return await conn.fetchrow(_BY_STEP, tenant, policy, min(step, MAX_INTEGER))
        case ByDigest(digest):
            return await conn.fetchrow(_BY_DIGEST, tenant, policy, digest_bytes(digest))


MAX_INTEGER = 2**31 - 1
"""The catalogue's column; a caller may write ten digits, and no revision has that number."""


def _words(selector: Selector) -> str:
    match selector:
        case ByAlias(alias):
            return f"alias {alias!r}"
        case ByNumber(number):
            return f"revision number {number}"
        case ByStep(step):
            return f"exported revision of step {step}"
        case ByDigest(digest):
            return f"revision {digest}"
