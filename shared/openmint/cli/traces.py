"""`openmint trace`: one request's way, from the gateway through its load to the first token."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openmint.cli.connection import traces_dir
from openmint.cli.output import Json, make_table, print_json, print_table, say
from openmint.errors import NotFound

if TYPE_CHECKING:
    from openmint.trace_files import SpanNode

BAR_WIDTH = 32

Dir = Annotated[Path | None, typer.Option("--dir", help="Where traces are; else OPENMINT_TRACES_DIR or the stack's.")]


def add_to(app: typer.Typer) -> None:
    """Put this command into the application."""
    app.command()(trace)


def trace(
    wanted: Annotated[str, typer.Argument(help="last, slowest, a request id or the beginning of a trace id.")] = "last",
    folder: Dir = None,
    json: Json = False,
) -> None:
    """Show where the time of one request went. Traces are kept by a stack that was started with `up --traces`."""
    from openmint.trace_files import find_trace, walk

    kept_in = folder or traces_dir()
    try:
        roots = find_trace(kept_in, wanted)
    except NotFound as error:
        raise NotFound(f"{error.detail}; a stack keeps traces when it is started with: openmint up --traces") from error
    if json:
        print_json([_as_value(node) for node in walk(roots)])
        return
    began_ns = min(node.span.started_ns for node in roots)
    ended_ns = max(node.span.ended_ns for node in walk(roots))
    say(f"trace {roots[0].span.trace}, {(ended_ns - began_ns) / 1e6:.1f} ms")
    rows: list[tuple[object, ...]] = []
    for root in roots:
        _add_rows(rows, root, "", "", began_ns, max(1, ended_ns - began_ns))
    print_table(make_table(("span", "service", "at ms", "took ms", "", "facts"), rows))


def _as_value(node: "SpanNode") -> dict[str, object]:
    return {**node.span.model_dump(), "took_ms": node.span.took_ms, "is_joined": node.is_joined}


def _add_rows(
    rows: list[tuple[object, ...]], node: "SpanNode", own: str, below: str, began_ns: int, whole_ns: int
) -> None:
    """A row for the node behind its branch `own`, then what is inside it, each behind `below`."""
    span = node.span
    facts = " ".join(f"{name}={value}" for name, value in span.attributes.items())
    if node.is_joined:
        facts = f"(begun by trace {span.trace[:8]}) {facts}"
    if span.error:
        facts = f"FAILED {span.error} {facts}"
    at_ms = (span.started_ns - began_ns) / 1e6
    bar = _bar(span.started_ns - began_ns, span.ended_ns - began_ns, whole_ns)
    rows.append((own + span.name, span.service, f"{at_ms:.1f}", f"{span.took_ms:.1f}", bar, facts))
    for number, inner in enumerate(node.inside, 1):
        branch, rest = ("└─ ", "   ") if number == len(node.inside) else ("├─ ", "│  ")
        _add_rows(rows, inner, below + branch, below + rest, began_ns, whole_ns)


def _bar(from_ns: int, to_ns: int, whole_ns: int) -> str:
    """Where on the whole line the span lies; what began before the trace is cut off on the left."""
    first = min(BAR_WIDTH - 1, max(0, from_ns * BAR_WIDTH // whole_ns))
    length = max(1, min(BAR_WIDTH, to_ns * BAR_WIDTH // whole_ns) - first)
    return "·" * first + "█" * length + "·" * (BAR_WIDTH - first - length)
