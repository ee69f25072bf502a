"""`openmint demo` and `openmint chaos`: the system proves itself on this machine."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from openmint.cli.output import Json, errors_console, print_json, say
from openmint.cli.profile import state_dir
from openmint.errors import NotFound


def add_to(app: typer.Typer) -> None:
    """Put these commands into the application."""
    app.command()(demo)
    app.command()(chaos)


def demo(
    keep_up: Annotated[bool, typer.Option("--keep-up", help="Leave the stack running afterwards.")] = False,
) -> None:
    """Live the whole life of one policy on real parts, from job event to rollback, and print its timeline."""
    from openmint.demo.life import run

    run(state_dir(), say, keep_up)


def chaos(
    kills: Annotated[int, typer.Option(min=0, help="How often a part is killed or paused.")] = 25,
    seed: Annotated[int, typer.Option(help="The same seed strikes in the same order.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Small jobs that run meanwhile.")] = 20,
    no_fencing: Annotated[bool, typer.Option("--no-fencing", help="What the oracle finds without.")] = False,
    folder: Annotated[Path | None, typer.Option(help="State directory of the run; not the stack that is up.")] = None,
    json: Json = False,
) -> None:
    """Kill and pause random parts while jobs run, then have an oracle look for anything lost or done twice."""
    from openmint.chaos.run import ChaosOptions, run

    tokenizers = sorted(path.parent for path in (state_dir() / "bases").glob("*/tokenizer.json"))
    if not tokenizers:
        raise NotFound(f"there is no base model in {state_dir() / 'bases'}; `make base` brings one")
    options = ChaosOptions(
        state_dir=folder or state_dir() / "chaos",
        tokenizer_from=tokenizers[0],
        kills=kills,
        seed=seed,
        jobs=jobs,
        fencing=not no_fencing,
    )
    told = errors_console.print if json else say
    report = asyncio.run(run(options, lambda text: told(text)))
    if json:
        print_json(report)
    else:
        for blow in report.blows:
            say(f"  {blow}")
        say(f"{report.accepted} jobs accepted, {report.aliases_answering} aliases answer, seed {report.seed}")
        for problem in report.verdict.problems:
            say(f"problem: {problem}")
    if report.verdict.problems:
        raise typer.Exit(1)
