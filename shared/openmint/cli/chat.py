"""`openmint chat`: ask a policy, once or in a conversation."""

import asyncio
import sys
from typing import Annotated

import typer

from openmint.answers import GeneratedAnswer, Message
from openmint.cli.connection import connect
from openmint.cli.output import Json, console, errors_console, print_json
from openmint.errors import OpenmintError


def add_to(app: typer.Typer) -> None:
    """Put this command into the application."""
    app.command()(chat)


def chat(
    model: Annotated[str, typer.Argument(help="tenant/policy, @alias, @7, @step-400, @sha256:… or a base model.")],
    prompt: Annotated[str | None, typer.Argument(help="What to ask; left out: a conversation.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 gives the same answer every time.")] = 0.0,
    complete: Annotated[bool, typer.Option("--complete", help="Go on from the prompt instead of chatting.")] = False,
    json: Json = False,
) -> None:
    """Ask a policy or a base model."""
    if json or complete:
        answer = asyncio.run(_ask(model, prompt or sys.stdin.read(), max_tokens, temperature, complete))
        if json:
            print_json(answer)
        else:
            console.out(answer.text, highlight=False)
            errors_console.print(f"revision {answer.revision}", markup=False, style="dim")
        return
    asyncio.run(_converse(model, prompt, max_tokens, temperature))


async def _ask(model: str, prompt: str, max_tokens: int, temperature: float, complete: bool) -> GeneratedAnswer:
    async with connect() as client:
        ask = client.complete if complete else client.chat
        return await ask(model, prompt, max_tokens=max_tokens, temperature=temperature)


async def _converse(model: str, prompt: str | None, max_tokens: int, temperature: float) -> None:
    said: list[Message] = []
    async with connect() as client:
        while True:
            asked = prompt if prompt is not None else await asyncio.to_thread(_read_line)
            if not asked:
                return
            said.append(Message(role="user", content=asked))
            pieces: list[str] = []
            try:
                async for piece in client.stream_chat(model, said, max_tokens=max_tokens, temperature=temperature):
                    pieces.append(piece)
                    console.out(piece, end="", highlight=False)
            except OpenmintError as error:
                if prompt is not None:
                    raise
                errors_console.print(f"error: {error.detail}", markup=False)
                said.pop()
                continue
            finally:
                console.out("")
            if prompt is not None:
                return
            said.append(Message(role="assistant", content="".join(pieces)))


def _read_line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
