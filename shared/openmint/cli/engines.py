"""`openmint engines`: what is loaded where, and how busy every engine is."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType

from openmint.cli.fleet_view import FleetView, Mine, Watch, run_view, seconds
from openmint.cli.output import Json, make_table, short

if TYPE_CHECKING:
    from openmint.engines.scheduler_view import EngineSeen


def add_to(app: typer.Typer) -> None:
    """Put this command into the application."""
    app.command()(engines)


def engines(
    residents: Annotated[bool, typer.Option("--residents", help="Also what each of them holds.")] = False,
    watch: Watch = False,
    mine: Mine = False,
    json: Json = False,
) -> None:
    """Show the engines: condition, residents, load."""

    def tables(view: FleetView) -> RenderableType:
        return Group(engine_table(view), "", resident_table(view)) if residents else engine_table(view)

    run_view(tables, engine_values, mine=mine, watch=watch, as_json=json, residents=residents)


def engine_table(view: FleetView) -> RenderableType:
    """One engine a row."""
    columns = (
        "engine", "base", "pools", "condition", "residents", "staged", "running", "waiting", "loads", "heartbeat",
    )  # fmt: skip
    return make_table(columns, [_row(engine) for engine in view.engines])


def resident_table(view: FleetView) -> RenderableType:
    """One adapter on one engine a row; what is in use first."""
    rows: list[tuple[object, ...]] = []
    for engine in view.engines:
        for held in sorted(engine.residents, key=lambda held: (-held.in_flight, held.adapter_name)):
            policy = held.adapter_name.partition("@")[0]
            leaving = "leaving" if held.is_leaving else None
            rows.append((engine.engine, policy, short(held.revision), held.in_flight, held.adapter_bytes, leaving))
    return make_table(("engine", "policy", "revision", "in flight", "bytes", ""), rows)


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
