"""`openmint keys`: API keys. With `--tenant` as the operator, in the catalogue itself; else through the gateway."""

import asyncio
from typing import Annotated

import typer

from openmint.answers import KeyAnswer
from openmint.cli.connection import connect, operator_settings, pepper
from openmint.cli.output import Json, print_json, say, table
from openmint.cli.profile import DEFAULT_URL, Profile, save_profile

app = typer.Typer(help="API keys.", no_args_is_help=True)

ALL_SCOPES = ("train", "read", "infer", "promote", "admin")

Tenant = Annotated[str | None, typer.Option(help="As the operator: for this tenant, straight in the catalogue.")]


@app.command("create")
def create(
    tenant: Tenant = None,
    scope: Annotated[list[str] | None, typer.Option(help="One or more of train, read, infer, promote, admin.")] = None,
    label: Annotated[str, typer.Option(help="What it is for.")] = "",
    save: Annotated[bool, typer.Option(help="Use it for later commands on this machine.")] = False,
    json: Json = False,
) -> None:
    """Make a key. Its text is shown once."""
    scopes = tuple(scope or ALL_SCOPES)
    key = asyncio.run(create_as_operator(tenant, scopes, label) if tenant else _create(scopes, label))
    if save:
        save_profile(Profile(DEFAULT_URL, key.key or "", key.tenant))
    if json:
        print_json(key)
    else:
        say(f"{key.key}")
        say(f"tenant {key.tenant}, scopes {', '.join(key.scopes)}")


@app.command("list")
def list_keys(tenant: Tenant = None, json: Json = False) -> None:
    """Show the keys of a tenant; never their text."""
    found = asyncio.run(_list_as_operator(tenant) if tenant else _list())
    if json:
        print_json(found)
    else:
        table(
            ("key", "tenant", "scopes", "label", "live", "made"),
            [(k.key_id, k.tenant, " ".join(k.scopes), k.label, k.is_live, f"{k.created_at:%F %T}") for k in found],
        )


@app.command("revoke")
def revoke(key_id: str, tenant: Tenant = None, json: Json = False) -> None:
    """End a key for good."""
    key = asyncio.run(_revoke_as_operator(tenant, key_id) if tenant else _revoke(key_id))
    if json:
        print_json(key)
    else:
        say(f"{key.key_id} is revoked")


async def create_as_operator(tenant: str, scopes: tuple[str, ...], label: str) -> KeyAnswer:
    """Make a key without having one."""
    from openmint.catalog import Catalog, keys

    settings = operator_settings()
    catalog = await Catalog.open(settings.postgres_dsn, max_size=1)
    try:
        async with catalog.transaction() as conn:
            text, key = await keys.create_key(conn, tenant, scopes, label=label, pepper=pepper())
    finally:
        await catalog.close()
    return KeyAnswer.model_validate(key, from_attributes=True).model_copy(update={"key": text})


async def _list_as_operator(tenant: str) -> list[KeyAnswer]:
    from openmint.catalog import Catalog, keys

    catalog = await Catalog.open(operator_settings().postgres_dsn, max_size=1)
    try:
        async with catalog.connection() as conn:
            found = await keys.list_keys(conn, tenant)
    finally:
        await catalog.close()
    return [KeyAnswer.model_validate(key, from_attributes=True) for key in found]


async def _revoke_as_operator(tenant: str, key_id: str) -> KeyAnswer:
    from openmint.catalog import Catalog, keys

    catalog = await Catalog.open(operator_settings().postgres_dsn, max_size=1)
    try:
        async with catalog.transaction() as conn:
            key = await keys.revoke(conn, tenant, key_id)
    finally:
        await catalog.close()
    return KeyAnswer.model_validate(key, from_attributes=True)


async def _create(scopes: tuple[str, ...], label: str) -> KeyAnswer:
    async with connect() as client:
        return await client.make_key(scopes, label=label)


async def _list() -> list[KeyAnswer]:
    async with connect() as client:
        return await client.keys()


async def _revoke(key_id: str) -> KeyAnswer:
    async with connect() as client:
        return await client.revoke_key(key_id)
