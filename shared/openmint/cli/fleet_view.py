"""Engines and loads as `openmint engines` and `openmint loads` show them, and from where they are known.

An operator, who can reach the bus, asks the schedulers and sees everything; without a scheduler the engines' own
heartbeats are heard. Everybody else asks the gateway and sees what is theirs.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from openmint.cli.connection import bus_settings, connect
from openmint.cli.output import page_console

if TYPE_CHECKING:
    from openmint.engines.scheduler_view import EngineSeen, LoadSeen

REFRESH_S = 0.5

Watch = Annotated[bool, typer.Option("--watch", help="Show it anew every half second, until Ctrl-C.")]
Mine = Annotated[bool, typer.Option("--mine", help="As a tenant, through the gateway, also where the bus is known.")]


@dataclass(frozen=True, slots=True)
class FleetView:
    """One look. `note` says where it comes from and what is missing."""

    note: str
    engines: "list[EngineSeen]" = field(default_factory=list["EngineSeen"])
    loads: "list[LoadSeen]" = field(default_factory=list["LoadSeen"])


Look = Callable[[], Awaitable[FleetView]]


@contextlib.asynccontextmanager
async def open_view(*, mine: bool, residents: bool = False) -> AsyncGenerator[Look]:
    """How to look, again and again. Raises: NoProfile, BusUnavailable; a look raises the gateway's errors."""
    settings = None if mine else bus_settings()
    if settings is None:
        async with connect() as client:

            async def ask_gateway() -> FleetView:
                from openmint.engines.scheduler_view import EngineSeen, LoadSeen

                engines, loads = await client.engines(), await client.loads()
                return FleetView(
                    "as the gateway tells this key's tenant",
                    [EngineSeen.model_validate(_as_engine(engine)) for engine in engines],
                    [LoadSeen.model_validate(load) for load in loads],
                )

            yield ask_gateway
        return

    from openmint.bus.connection import connect_bus
    from openmint.engines.scheduler_view import SchedulerQuery, ask_every_leader, hear_engines

    bus = await connect_bus(settings, "cli", timeout_s=5.0)

    async def ask_leaders() -> FleetView:
        seen = await ask_every_leader(bus, SchedulerQuery(residents=residents))
        if not seen:
            return FleetView("no scheduler leads; engines as they tell of themselves", await hear_engines(bus))
        bases = "; ".join(
            f"{base.base}: epoch {base.epoch}, {base.loads_total} loads, {sum(base.waiting.values())} waiting"
            for base in seen
        )
        return FleetView(
            bases, [engine for base in seen for engine in base.engines], [load for base in seen for load in base.loads]
        )

    try:
        yield ask_leaders
    finally:
        await bus.close()


def _as_engine(told: Mapping[str, object]) -> dict[str, object]:
    """The gateway's words for an engine, in the scheduler's."""
    condition = "" if "is_ready" not in told else "ready" if told["is_ready"] else "not ready"
    return {**told, "residents": [], "resident_count": told.get("residents", 0), "condition": condition}


async def show(
    look: Look,
    render: Callable[[FleetView], RenderableType],
    values: Callable[[FleetView], object],
    *,
    watch: bool,
    as_json: bool,
    looks: int | None = None,
) -> None:
    """Show one look, or with `watch` one after the other: `looks` of them, or until Ctrl-C.

    JSON is one document, indented; with `watch` one line for each look.
    """
    if not watch:
        view = await look()
        if as_json:
            _write_json(values(view), indent=2)
        else:
            page_console().print(_page(view, render))
        return
    shown = 0
    with contextlib.nullcontext() if as_json else Live(console=page_console(), auto_refresh=False) as live:
        while looks is None or shown < looks:
            view = await look()
            if live is None:
                _write_json(values(view), indent=None)
            else:
                live.update(_page(view, render), refresh=True)
            shown += 1
            await asyncio.sleep(REFRESH_S)


def run_view(
    render: Callable[[FleetView], RenderableType],
    values: Callable[[FleetView], object],
    *,
    mine: bool,
    watch: bool,
    as_json: bool,
    residents: bool = False,
) -> None:
    """What `openmint engines` and `openmint loads` do, until it is done or Ctrl-C."""

    async def look() -> None:
        async with open_view(mine=mine, residents=residents) as view:
            await show(view, render, values, watch=watch, as_json=as_json)

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(look())


def _page(view: FleetView, render: Callable[[FleetView], RenderableType]) -> RenderableType:
    return Group(render(view), Text(view.note, style="dim"))


def _write_json(value: object, indent: int | None) -> None:
    json.dump(value, sys.stdout, indent=indent)
    sys.stdout.write("\n")
    sys.stdout.flush()


def seconds(value: float | None) -> str | None:
    """Seconds as people read them."""
    return None if value is None else f"{value:.1f} s" if value < 100 else f"{value:.0f} s"
