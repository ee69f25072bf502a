"""API keys: `id.secret`. Only SHA-256(secret + pepper) is kept: the secret is random, so no slow hash is needed."""

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from datetime import datetime

import asyncpg

from openmint.catalog.database import Connection
from openmint.catalog.rows import ApiKey, fields_of
from openmint.catalog.tenants import ensure_tenant
from openmint.errors import BadRequest, NotFound, Unauthorised

SCOPES = frozenset({"train", "read", "infer", "promote", "admin"})

_COLUMNS = (
    "key_id, tenant, secret_hash, scopes, label, expires_at, revoked_at, created_at,"
    " revoked_at is null and (expires_at is null or expires_at > clock_timestamp()) as is_live"
)


async def create_key(
    conn: Connection,
    tenant: str,
    scopes: Iterable[str],
    expires_at: datetime | None = None,
    *,
    label: str = "",
    pepper: bytes = b"",
) -> tuple[str, ApiKey]:
    """A new key; its text is returned here and can never be read again. Raises: BadRequest, BadName."""
    wanted = frozenset(scopes)
    unknown = wanted - SCOPES
    if unknown or not wanted:
        named = ", ".join(sorted(unknown)) or "none"
        raise BadRequest(f"scopes are {', '.join(sorted(SCOPES))}; given: {named}", field="scopes")
    await ensure_tenant(conn, tenant)
    key_id, secret = f"om{secrets.token_hex(8)}", secrets.token_urlsafe(32)
    row = await conn.fetchrow(
        "insert into api_keys (key_id, tenant, secret_hash, scopes, label, expires_at)"
        f" values ($1, $2, $3, $4, $5, $6) returning {_COLUMNS}",
        key_id,
        tenant,
        hash_secret(secret, pepper),
        sorted(wanted),
        label,
        expires_at,
    )
    assert row is not None
    return f"{key_id}.{secret}", _key_from(row)


async def find_key(conn: Connection, key_id: str) -> ApiKey:
    """Raises: NotFound."""
    row = await conn.fetchrow(f"select {_COLUMNS} from api_keys where key_id = $1", key_id)
    if row is None:
        raise NotFound("there is no such API key")
    return _key_from(row)


async def authenticate(conn: Connection, key_text: str, *, pepper: bytes = b"") -> ApiKey:
    """The live key that this text is. A wrong id and a wrong secret take the same path and give the same error.

    Raises: Unauthorised.
    """
    key_id, _, secret = key_text.partition(".")
    row = None
    if key_id.isascii() and "\x00" not in key_id and len(key_id) <= MAX_KEY_ID_LENGTH:
        row = await conn.fetchrow(f"select {_COLUMNS} from api_keys where key_id = $1", key_id)
    expected = _NOBODY if row is None else bytes(row["secret_hash"])
    matches = hmac.compare_digest(hash_secret(secret, pepper), expected)
    if row is None or not matches or not row["is_live"]:
        raise Unauthorised
    return _key_from(row)


async def list_keys(conn: Connection, tenant: str) -> list[ApiKey]:
    """All keys of a tenant, oldest first."""
    rows = await conn.fetch(f"select {_COLUMNS} from api_keys where tenant = $1 order by created_at, key_id", tenant)
    return [_key_from(row) for row in rows]


async def revoke(conn: Connection, tenant: str, key_id: str) -> ApiKey:
    """End a key now, for good. Raises: NotFound, also for another tenant's."""
    row = await conn.fetchrow(
        "update api_keys set revoked_at = coalesce(revoked_at, clock_timestamp())"
        f" where key_id = $1 and tenant = $2 returning {_COLUMNS}",
        key_id,
        tenant,
    )
    if row is None:
        raise NotFound("there is no such API key")
    return _key_from(row)


def hash_secret(secret: str, pepper: bytes = b"") -> bytes:
    """What the catalogue keeps of a secret; the pepper is the installation's and lies outside the catalogue."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass") + pepper).digest()


MAX_KEY_ID_LENGTH = 64
_NOBODY = bytes(32)


def _key_from(row: asyncpg.Record) -> ApiKey:
    return ApiKey(**fields_of(row, scopes=frozenset(row["scopes"])))
