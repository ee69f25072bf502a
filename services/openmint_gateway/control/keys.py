"""API keys of the caller's own tenant. A key's text is told once, when it is made."""

from datetime import datetime

from fastapi import APIRouter
from pydantic import AwareDatetime, Field

from openmint.catalog import keys
from openmint_gateway.control.parts import Admin, Answer, Parts, StrictBody

router = APIRouter(prefix="/v1/keys", tags=["keys"])


class KeyDraft(StrictBody):
    """A key to make."""

    scopes: list[str] = Field(min_length=1, max_length=5, description="train, read, infer, promote, admin")
    label: str = Field(default="", max_length=100)
    expires_at: AwareDatetime | None = None


class KeyAnswer(Answer):
    """What may be known of a key."""

    key_id: str
    tenant: str
    scopes: list[str]
    label: str
    is_live: bool
    expires_at: datetime | None
    revoked_at: datetime | None
    created_at: datetime


class NewKey(KeyAnswer):
    """A key and its text."""

    key: str


@router.post("", status_code=201)
async def make_key(parts: Parts, caller: Admin, draft: KeyDraft) -> NewKey:
    """Make a key for the caller's tenant."""
    async with parts.catalog.transaction() as conn:
        text, key = await keys.create_key(
            conn, caller.tenant, draft.scopes, draft.expires_at, label=draft.label, pepper=parts.pepper
        )
    return NewKey(**_answer(key).model_dump(), key=text)


@router.get("")
async def list_keys(parts: Parts, caller: Admin) -> list[KeyAnswer]:
    """The tenant's keys, oldest first."""
    async with parts.catalog.connection() as conn:
        return [_answer(key) for key in await keys.list_keys(conn, caller.tenant)]


@router.delete("/{key_id}")
async def revoke_key(parts: Parts, caller: Admin, key_id: str) -> KeyAnswer:
    """End a key for good: here at once, in other gateways within 30 s."""
    async with parts.catalog.transaction() as conn:
        key = await keys.revoke(conn, caller.tenant, key_id)
    parts.keys.forget(key_id)
    return _answer(key)


def _answer(key: keys.ApiKey) -> KeyAnswer:
    return KeyAnswer(
        key_id=key.key_id,
        tenant=key.tenant,
        scopes=sorted(key.scopes),
        label=key.label,
        is_live=key.is_live,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        created_at=key.created_at,
    )
