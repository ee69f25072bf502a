from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from openmint.catalog import Catalog, keys
from openmint.errors import BadRequest, NotFound, Unauthorised

PEPPER = b"of this installation"


async def test_a_key_opens_with_its_text_and_only_a_hash_is_kept(world: Any, catalog: Catalog) -> None:
    async with catalog.connection() as conn:
        text, made = await keys.create_key(conn, "acme", {"infer", "read"}, label="ci", pepper=PEPPER)
        assert await keys.authenticate(conn, text, pepper=PEPPER) == made
        kept = await conn.fetchval("select api_keys::text from api_keys")
    key_id, secret = text.split(".")
    assert (made.key_id, made.tenant, made.scopes) == (key_id, "acme", frozenset({"infer", "read"}))
    assert secret not in kept
    assert made.secret_hash == keys.hash_secret(secret, PEPPER)


@pytest.mark.parametrize("damage", ["id", "secret", "pepper", "empty", "no dot", "nul", "unicode", "surrogate"])
async def test_whatever_is_wrong_the_answer_is_the_same(world: Any, catalog: Catalog, damage: str) -> None:
    async with catalog.connection() as conn:
        text, _ = await keys.create_key(conn, "acme", {"infer"}, pepper=PEPPER)
        key_id, secret = text.split(".")
        tried = {
            "id": f"omffffffffffffffff.{secret}",
            "secret": f"{key_id}.{secret[:-1]}",
            "pepper": text,
            "empty": "",
            "no dot": key_id + secret,
            "nul": f"{key_id}\x00.{secret}",
            "unicode": f"ключ.{secret}",
            "surrogate": f"{key_id}.\ud800",
        }[damage]
        with pytest.raises(Unauthorised) as refusal:
            await keys.authenticate(conn, tried, pepper=b"another" if damage == "pepper" else PEPPER)
    assert refusal.value.detail == Unauthorised().detail


async def test_an_expired_or_revoked_key_opens_nothing(world: Any, catalog: Catalog) -> None:
    async with catalog.connection() as conn:
        expired, _ = await keys.create_key(conn, "acme", {"infer"}, datetime.now(UTC) - timedelta(seconds=1))
        live, key = await keys.create_key(conn, "acme", {"infer"}, datetime.now(UTC) + timedelta(hours=1))
        assert (await keys.authenticate(conn, live)).is_live
        with pytest.raises(NotFound):
            await keys.revoke(conn, "rival", key.key_id)
        revoked = await keys.revoke(conn, "acme", key.key_id)
        for text in (expired, live):
            with pytest.raises(Unauthorised):
                await keys.authenticate(conn, text)
        assert await keys.revoke(conn, "acme", key.key_id) == revoked
        assert len(await keys.list_keys(conn, "acme")) == 2
        assert not (await keys.find_key(conn, key.key_id)).is_live
        with pytest.raises(NotFound):
            await keys.find_key(conn, "nobody")


@pytest.mark.parametrize("scopes", [set(), {"infer", "root"}])
async def test_unknown_scopes_are_refused(world: Any, catalog: Catalog, scopes: set[str]) -> None:
    async with catalog.connection() as conn:
        with pytest.raises(BadRequest, match="scopes are admin, infer"):
            await keys.create_key(conn, "acme", scopes)
