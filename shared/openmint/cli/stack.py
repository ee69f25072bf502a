"""The local stack and its health: up, down, status, doctor, provision."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from openmint.cli.connection import operator_settings
from openmint.cli.output import Json, print_json, say, table
from openmint.cli.profile import Profile, profile_file, read_profile, save_profile, stack_traces_dir, state_dir
from openmint.errors import OpenmintError

DEFAULT_TENANT = "local"


def add_to(app: typer.Typer) -> None:
    """Put these commands into the application."""
    for command in (up, down, status, doctor, provision):
        app.command()(command)


def up(
    port: Annotated[int, typer.Option(help="Where the gateway listens.")] = 8080,
    tenant: Annotated[str, typer.Option(help="Whose key is made for this machine.")] = DEFAULT_TENANT,
    traces: Annotated[bool, typer.Option("--traces", help="Keep traces, for `openmint trace`.")] = False,
    json: Json = False,
) -> None:
    """Start the local stack in the background and make a key for this machine."""
    from openmint import local_stack
    from openmint.cli.keys import ALL_SCOPES, create_as_operator

    plan = local_stack.plan_from_environment(state_dir(), port)
    if traces:
        folder = stack_traces_dir(state_dir()).resolve()
        plan = replace(plan, extra_env={**plan.extra_env, "OPENMINT_TRACES_DIR": str(folder)})
    seen = local_stack.up(plan)
    if not profile_file().exists():
        key = asyncio.run(create_as_operator(tenant, ALL_SCOPES, "this machine"))
        save_profile(Profile(seen.gateway_url, key.key or "", key.tenant))
    if json:
        print_json(seen)
    else:
        say(f"the stack is up at {seen.gateway_url}; your key is in {profile_file()}")


def down(json: Json = False) -> None:
    """Stop the local stack; its state stays."""
    from openmint import local_stack

    stopped = local_stack.down(state_dir())
    if json:
        print_json({"stopped": stopped})
    else:
        say("the stack is down" if stopped else "no stack was running")


def status(json: Json = False) -> None:
    """Show the parts of the local stack."""
    import time

    from openmint import local_stack

    seen = local_stack.status(state_dir())
    if json:
        print_json(seen)
        return
    say(f"{seen.note}; gateway at {seen.gateway_url}")
    now = time.time()
    table(
        ("part", "pid", "state", "restarts", "up for", "note"),
        [(p.name, p.pid, p.state, p.restarts, f"{now - p.since:.0f} s", p.note) for p in seen.parts],
    )


def provision(
    base: Annotated[list[Path] | None, typer.Option(help="A base model's folder; more than one is possible.")] = None,
    json: Json = False,
) -> None:
    """Make tables, streams and consumers, and register base models. Again: changes nothing."""
    from openmint.provision import provision_all

    folders = base or sorted(path.parent for path in (state_dir() / "bases").glob("*/config.json"))
    done = asyncio.run(provision_all(operator_settings(), folders))
    if json:
        print_json({"unchanged": done.is_unchanged(), "report": done})
        return
    if done.is_unchanged():
        say("everything is there already")
        return
    for migration in done.migrations_applied:
        say(f"migrated {migration}")
    for name in done.bus.changed:
        say(f"made or changed {name}")
    for name in done.bases_registered:
        say(f"registered base model {name}")


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found."""

    check: str
    is_well: bool
    said: str


def doctor(json: Json = False) -> None:
    """Check every part that openmint needs, and say what is wrong. Exits with 1 if something is."""
    findings = asyncio.run(_examine())
    if json:
        print_json(findings)
    else:
        table(("check", "", "found"), [(f.check, "ok" if f.is_well else "WRONG", f.said) for f in findings])
    if not all(finding.is_well for finding in findings):
        raise typer.Exit(1)


async def _examine() -> list[Finding]:
    checks: dict[str, Callable[[], Awaitable[str]]] = {
        "bus": _check_bus,
        "catalogue": _check_catalogue,
        "store": _check_store,
        "gateway": _check_gateway,
        "engines": _check_engines,
    }
    return [await _check(name, check) for name, check in checks.items()]


async def _check(name: str, check: Callable[[], Awaitable[str]]) -> Finding:
    try:
        async with asyncio.timeout(10):
            return Finding(name, True, await check())
    except OpenmintError as error:
        return Finding(name, False, error.detail)
    except (TimeoutError, OSError) as error:
        return Finding(name, False, str(error) or "no answer within 10 s")


async def _check_bus() -> str:
    from openmint.bus.connection import connect_bus

    bus = await connect_bus(operator_settings(), "doctor")
    try:
        names = [info.config.name for info in await bus.js.streams_info()]
    finally:
        await bus.close()
    if "EVENTS" not in names:
        raise OpenmintError("no streams; run: openmint provision")
    return f"streams {', '.join(sorted(filter(None, names)))}"


async def _check_catalogue() -> str:
    from openmint.catalog import Catalog, bases

    catalog = await Catalog.open(operator_settings().postgres_dsn, max_size=1)
    try:
        async with catalog.connection() as conn:
            found = [base.name for base in await bases.list_bases(conn)]
    finally:
        await catalog.close()
    if not found:
        raise OpenmintError("no base model is registered; run: openmint provision --base FOLDER")
    return f"base models {', '.join(found)}"


async def _check_store() -> str:
    from openmint.adapters.store import Store

    settings = operator_settings()
    store = Store.open(settings.store_url)
    await store.put_bytes("doctor/probe", b"ok")
    await store.delete("doctor/probe")
    return f"{settings.store_url} takes files"


async def _check_gateway() -> str:
    from openmint.client import Client

    profile = read_profile()
    async with Client(profile.url, profile.key) as client:
        await client.policies(limit=1)
    return f"{profile.url} answers, the key is good"


async def _check_engines() -> str:
    from openmint.client import Client

    profile = read_profile()
    async with Client(profile.url, profile.key) as client:
        found = await client.engines()
    ready = [str(engine.get("engine")) for engine in found if engine.get("is_ready")]
    if not ready:
        raise OpenmintError("no engine is ready yet")
    return f"ready: {', '.join(ready)}"
