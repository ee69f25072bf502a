"""`openmint loads`: what waits or is on its way to an engine, and why it is not there yet."""

from typing import TYPE_CHECKING

import typer
from rich.console import RenderableType

from openmint.cli.fleet_view import FleetView, Mine, Watch, run_view, seconds
from openmint.cli.output import Json, make_table, short

if TYPE_CHECKING:
    from openmint.engines.scheduler_view import LoadSeen


def add_to(app: typer.Typer) -> None:
    """Put this command into the application."""
    app.command()(loads)


def loads(watch: Watch = False, mine: Mine = False, json: Json = False) -> None:
    """Show the loads that are not answered yet: those under way, then those that wait, in their order."""
    run_view(load_table, load_values, mine=mine, watch=watch, as_json=json)


def load_table(view: FleetView) -> RenderableType:
    """One load a row."""
    columns = (
        "policy", "revision", "class", "phase", "engine", "position", "expected wait", "waited", "deadline in",
        "waiters", "tries", "why",
    )  # fmt: skip
    return make_table(columns, [_row(load) for load in view.loads])


def load_values(view: FleetView) -> object:
    """The same for programs."""
    return [load.model_dump(mode="json") for load in view.loads]


def _row(load: "LoadSeen") -> tuple[object, ...]:
    expected_s = load.expected_wait_s if load.position is not None else None
    return (
        load.policy, short(load.revision), load.load_class, load.phase, load.engine, load.position,
        seconds(expected_s), seconds(load.waited_s), seconds(load.deadline_in_s), load.waiters, load.tries,
        "; ".join(filter(None, (load.why, load.trouble))) or None,
    )  # fmt: skip
