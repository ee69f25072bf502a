"""`openmint data`: put rows into the store, and see what was put."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from openmint.answers import DatasetAnswer
from openmint.cli.connection import connect
from openmint.cli.output import Json, print_json, say
from openmint.errors import BadDataset

app = typer.Typer(help="Datasets.", no_args_is_help=True)


@app.command("put")
def put(
    path: Annotated[Path, typer.Argument(help="JSON Lines: {messages: …} or {prompt, completion} rows.")],
    json: Json = False,
) -> None:
    """Put a file of rows; the digest that comes back names it in jobs."""
    dataset = asyncio.run(_put(read_rows(path)))
    if json:
        print_json(dataset)
    else:
        say(f"{dataset.digest}  {dataset.rows} rows, {dataset.bytes} bytes")


def read_rows(path: Path) -> bytes:
    """The file's bytes. Raises: BadDataset."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadDataset(f"can't read {path}: {error.strerror}") from error


async def _put(rows: bytes) -> DatasetAnswer:
    async with connect() as client:
        return await client.put_data(rows)
