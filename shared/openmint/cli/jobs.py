"""`openmint jobs`, `watch` and `cancel`."""

import asyncio
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from openmint.answers import JobAnswer
from openmint.cli.connection import connect
from openmint.cli.output import Json, console, print_json, say, short, table
from openmint.client import Client
from openmint.errors import LoadTimeout


def add_to(app: typer.Typer) -> None:
    """Put these commands into the application."""
    app.command()(jobs)
    app.command()(watch)
    app.command()(cancel)


def jobs(
    policy: Annotated[str | None, typer.Option(help="Of this policy alone.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500)] = 20,
    json: Json = False,
) -> None:
    """List jobs, newest first."""

    async def ask() -> list[JobAnswer]:
        async with connect() as client:
            return (await client.jobs(policy=policy, limit=limit)).items

    found = asyncio.run(ask())
    if json:
        print_json(found)
        return
    table(
        ("job", "policy", "state", "step", "loss", "why", "made"),
        [(j.job_id, j.policy, j.state, _step(j), _loss(j), _why(j), f"{j.created_at:%F %T}") for j in found],
    )


def watch(
    job_ids: Annotated[list[str] | None, typer.Argument(help="Jobs; left out: all that have not ended.")] = None,
    timeout_s: Annotated[float, typer.Option(help="Stop watching after so many seconds.")] = 86_400.0,
    json: Json = False,
) -> None:
    """Follow jobs to their end, and their revisions through the gate. Exits with 1 if one did not complete."""
    ended = asyncio.run(_watch(job_ids or [], timeout_s, quiet=json))
    show_ends(ended, json)


def cancel(job_id: str, json: Json = False) -> None:
    """Stop a job."""

    async def ask() -> JobAnswer:
        async with connect() as client:
            return await client.cancel(job_id)

    job = asyncio.run(ask())
    if json:
        print_json(job)
    else:
        say(f"job {job.job_id} is {job.state}" + (", to be stopped at its next step" if not job.is_ended else ""))


def show_ends(ended: list[JobAnswer], json: bool) -> None:
    """Say how jobs ended; raises typer.Exit with 1 if one did not complete."""
    if json:
        print_json(ended)
    else:
        for job in ended:
            why = _why(job)
            say(f"job {job.job_id} {job.state}" + (f": {why}" if why else ""))
            for revision in job.revisions:
                said = f": {revision.reason}" if revision.reason else ""
                say(f"  revision {revision.number} {short(revision.digest)} {revision.state}{said}")
    if any(job.state != "completed" for job in ended):
        raise typer.Exit(1)


async def _watch(job_ids: list[str], timeout_s: float, *, quiet: bool) -> list[JobAnswer]:
    async with connect() as client:
        if not job_ids:
            job_ids = [str(job.job_id) for job in (await client.jobs(limit=100)).items if not job.is_ended]
        return await follow(client, job_ids, timeout_s, quiet=quiet)


async def follow(client: Client, job_ids: list[str], timeout_s: float, *, quiet: bool) -> list[JobAnswer]:
    """Show progress bars until every job has ended and its revisions are decided. Raises: LoadTimeout."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=quiet) as progress:
        bars = {job_id: progress.add_task(job_id[:8], total=None, said="") for job_id in job_ids}
        try:
            async with asyncio.timeout(timeout_s):
                return list(await asyncio.gather(*(_follow(client, job, progress, bars[job]) for job in job_ids)))
        except TimeoutError as error:
            raise LoadTimeout(f"not all jobs had ended after {timeout_s:.0f} s; they go on") from error


async def _follow(client: Client, job_id: str, progress: Progress, bar: TaskID) -> JobAnswer:
    async for job in client.watch(job_id):
        step = int(_number(job, "step") or job.step)
        progress.update(
            bar, description=job.policy, total=job.steps or None, completed=step, said=f"{job.state} {_loss(job)}"
        )
        if job.is_ended:
            break
    while True:
        job = await client.job(job_id)
        states = ", ".join(revision.state for revision in job.revisions)
        progress.update(bar, said=f"{job.state}; {states}" if states else job.state)
        if all(revision.is_decided for revision in job.revisions):
            return job
        await asyncio.sleep(0.5)


def _number(job: JobAnswer, name: str) -> float | None:
    value = (job.progress or {}).get(name)
    return float(value) if isinstance(value, int | float) else None


def _step(job: JobAnswer) -> str:
    return f"{int(_number(job, 'step') or job.step)}/{job.steps}"


def _loss(job: JobAnswer) -> str:
    loss = job.final_loss if job.final_loss is not None else _number(job, "loss")
    return "" if loss is None else f"{loss:.3f}"


def _why(job: JobAnswer) -> str:
    return "" if job.cause is None else f"{job.cause.detail} ({job.cause.code})"
