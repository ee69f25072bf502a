"""`openmint dead`: messages that could not be handled, and putting them back once they are mended."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openmint.cli.connection import operator_settings
from openmint.cli.output import Json, print_json, say, table
from openmint.errors import BadRequest

if TYPE_CHECKING:
    from openmint.bus.connection import Bus
    from openmint.bus.dead_letters import DeadLetter

app = typer.Typer(help="Dead letters.", no_args_is_help=True)


@app.command("list")
def list_letters(
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    after: Annotated[int, typer.Option(help="Begin behind this number.")] = 0,
    json: Json = False,
) -> None:
    """List dead letters, oldest first."""
    from openmint.bus.dead_letters import list_dead

    async def ask() -> "list[DeadLetter]":
        async with _bus() as bus:
            return await list_dead(bus, after=after, limit=limit)

    found = asyncio.run(ask())
    if json:
        print_json([_plain(letter) for letter in found])
        return
    table(
        ("number", "subject", "code", "what is wrong", "died"),
        [(d.seq, d.subject, d.error_code, d.detail[:80], d.died_at and f"{d.died_at:%F %T}") for d in found],
    )


@app.command("show")
def show(number: int, json: Json = False) -> None:
    """Show one dead letter with its body."""
    from openmint.bus.dead_letters import show_dead

    async def ask() -> "DeadLetter":
        async with _bus() as bus:
            return await show_dead(bus, number)

    letter = asyncio.run(ask())
    if json:
        print_json(_plain(letter))
        return
    say(f"{letter.subject}, id {letter.event_id}, {letter.deliveries} deliveries to {letter.consumer}")
    field = f" [{letter.field}]" if letter.field else ""
    say(f"{letter.error_code}{field}: {letter.detail}")
    say(letter.data.decode("utf-8", "backslashreplace"))


@app.command("replay")
def replay(
    number: int,
    body: Annotated[Path | None, typer.Option(help="A file with the mended body.")] = None,
    json: Json = False,
) -> None:
    """Publish a dead letter again, mended or as it is; whoever handled it before does not do so twice."""
    from openmint.bus.dead_letters import replay_dead

    mended: bytes | None = None
    if body is not None:
        try:
            mended = body.read_bytes()
        except OSError as error:
            raise BadRequest(f"can't read {body}: {error.strerror}", field="body") from error

    async def put_back() -> int:
        async with _bus() as bus:
            return await replay_dead(bus, number, mended)

    sequence = asyncio.run(put_back())
    if json:
        print_json({"replayed": number, "sequence": sequence})
    else:
        say(f"dead letter {number} is back in its stream as message {sequence}")


@asynccontextmanager
async def _bus() -> "AsyncGenerator[Bus]":
    from openmint.bus.connection import connect_bus

    bus = await connect_bus(operator_settings(), "cli")
    try:
        yield bus
    finally:
        await bus.close()


def _plain(letter: "DeadLetter") -> dict[str, object]:
    return {
        "seq": letter.seq,
        "subject": letter.subject,
        "event_id": letter.event_id,
        "consumer": letter.consumer,
        "deliveries": letter.deliveries,
        "error_code": letter.error_code,
        "detail": letter.detail,
        "field": letter.field,
        "died_at": letter.died_at,
        "is_truncated": letter.is_truncated,
        "body": letter.data.decode("utf-8", "backslashreplace"),
    }
