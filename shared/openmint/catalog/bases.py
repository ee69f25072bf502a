"""Base models that trainers and engines may keep resident."""

import asyncpg

from openmint.catalog.database import Connection
from openmint.catalog.rows import Base, JsonObject, dump_json, load_json
from openmint.errors import Conflict, NotFound
from openmint.identifiers import check_name, digest_bytes, digest_from_bytes


async def register_base(
    conn: Connection,
    name: str,
    digest: str,
    locator: str,
    modules: dict[str, tuple[int, int]],
    config: JsonObject,
) -> bool:
    """Make a base model known; True when it is new. A known one may move to another locator.

    Raises: Conflict when the name stands for another digest: policies rest on that one.
    """
    check_name(name, "base model")
    is_new = await conn.fetchval(
        "insert into base_models (base, digest, locator, modules, config) values ($1, $2, $3, $4, $5)"
        " on conflict (base) do nothing returning true",
        name,
        digest_bytes(digest),
        locator,
        dump_json({path: list(shape) for path, shape in modules.items()}),
        dump_json(config),
    )
    if is_new:
        return True
    present = await find_base(conn, name)
    if present.digest != digest:
        raise Conflict(f"base model {name!r} is registered with {present.digest}, not {digest}: use another name")
    if present.locator != locator:
        await conn.execute("update base_models set locator = $2 where base = $1", name, locator)
    return False


async def find_base(conn: Connection, name: str) -> Base:
    """Raises: NotFound."""
    row = await conn.fetchrow("select base, digest, locator, modules, config from base_models where base = $1", name)
    if row is None:
        raise NotFound(f"there is no base model {name!r}", field="base")
    return _base_from(row)


async def list_bases(conn: Connection) -> list[Base]:
    """All of them, by name."""
    rows = await conn.fetch("select base, digest, locator, modules, config from base_models order by base")
    return [_base_from(row) for row in rows]


def _base_from(row: asyncpg.Record) -> Base:
    modules = {path: (int(shape[0]), int(shape[1])) for path, shape in load_json(row["modules"]).items()}
    return Base(
        name=row["base"],
        digest=digest_from_bytes(row["digest"]),
        locator=row["locator"],
        modules=modules,
        config=load_json(row["config"]),
    )
