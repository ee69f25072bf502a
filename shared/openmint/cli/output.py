"""How commands answer: a table or a line for people, JSON for programs (`--json`), one line for an error."""

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from openmint.errors import CallerMistake, OpenmintError, TryAgain

Json = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]

EXIT_FAILED = 1
EXIT_MISTAKE = 2
EXIT_TRY_AGAIN = 3

PIPE_WIDTH = 240

console = Console(highlight=False, soft_wrap=True)
errors_console = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Any value of ours, one JSON document on standard output."""
    plain: Any = TypeAdapter(object).dump_python(value, mode="json", serialize_as_any=True)
    json.dump(plain, sys.stdout, indent=2)
    sys.stdout.write("\n")


def say(text: str) -> None:
    """A line for people; what stands in it is never read as markup."""
    console.print(text, markup=False)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table for people."""
    print_table(make_table(columns, rows))


def print_table(grid: Table) -> None:
    """Print a table that `make_table` made."""
    page_console().print(grid)


def page_console() -> Console:
    """For what is laid out in columns. A pipe has no width; cut off at 80 characters, a table would hide things."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def make_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table for people; None is shown as a dash."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column)
    for row in rows:
        grid.add_row(*("-" if cell is None else _plain(str(cell)) for cell in row))
    return grid


def fail(error: OpenmintError, *, as_json: bool) -> int:
    """Say in one line what is wrong and with what; returns the exit code."""
    if as_json:
        print_json({"error": {"code": error.code, "detail": error.detail, "field": error.field}})
    else:
        field = f" [{error.field}]" if error.field and error.field not in error.detail else ""
        errors_console.print(f"error: {' '.join(error.detail.split())}{field} ({error.code})", markup=False)
    if isinstance(error, CallerMistake):
        return EXIT_MISTAKE
    return EXIT_TRY_AGAIN if isinstance(error, TryAgain) else EXIT_FAILED


def short(digest: str | None) -> str | None:
    """A digest as people can compare it."""
    return None if digest is None else digest.removeprefix("sha256:")[:12]


def _plain(text: str) -> str:
    """A cell in which brackets are brackets and control characters are nothing."""
    return "".join(character for character in text if character.isprintable()).replace("[", "\\[")
