"""`openmint engines`: what is loaded where, and how busy every engine is."""

import asyncio
import contextlib
from typing import TYPE_CHECKING

import typer
from rich.console import RenderableType

from openmint.cli.fleet_view import FleetView, Mine, Watch, open_view, seconds, show
from openmint.cli.output import Json, make_table

if TYPE_CHECKING:
    from openmint.engines.scheduler_view import EngineSeen


def add_to(app: typer.Typer) -> None:
    """Put this command into the application."""
    app.command()(engines)


def engines(watch: Watch = False, mine: Mine = False, json: Json = False) -> None:
    """Show the engines: condition, residents, load. With --json also what each of them holds."""

    async def look() -> None:
        async with open_view(mine=mine, residents=json) as view:
            await show(view, engine_table, engine_values, watch=watch, as_json=json)

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(look())


def engine_table(view: FleetView) -> RenderableType:
    """One engine a row."""
    columns = (
        "engine", "base", "pools", "condition", "residents", "staged", "running", "waiting", "loads", "heartbeat",
    )  # fmt: skip
    return make_table(columns, [_row(engine) for engine in view.engines])


def engine_values(view: FleetView) -> object:
    """The same for programs."""
    return [engine.model_dump(mode="json") for engine in view.engines]


def _row(engine: "EngineSeen") -> tuple[object, ...]:
    loads = None if engine.staging is None else engine.staging + (engine.attaching or 0)
    condition = engine.condition
    if engine.is_usable is False and condition == "ready":
        condition = "ready, not looked at yet"
    return (
        engine.engine, engine.base, " ".join(engine.pools), condition, _of(engine.resident_count, engine.capacity),
        engine.staged_count, _of(engine.running, engine.max_running), engine.waiting, loads, seconds(engine.seen_ago_s),
    )  # fmt: skip


def _of(count: int | None, most: int | None) -> str | None:
    return None if count is None else str(count) if most is None else f"{count}/{most}"
