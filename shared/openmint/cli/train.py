"""`openmint train`: a job from a file, from flags, or from both; `--dry-run` says what it would cost."""

import asyncio
import json as json_text
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from openmint.answers import JobAnswer
from openmint.cli.connection import connect, operator_settings
from openmint.cli.data import read_rows
from openmint.cli.jobs import follow, show_ends
from openmint.cli.output import Json, print_json, say
from openmint.client import Client
from openmint.errors import BadDataset, BadRequest, NotFound, OpenmintError
from openmint.events import TrainRequested

JobSpec = dict[str, Any]


def add_to(app: typer.Typer) -> None:
    """Put this command into the application."""
    app.command()(train)


def train(
    file: Annotated[Path | None, typer.Argument(help="The job as YAML or JSON; flags override it.")] = None,
    policy: Annotated[str | None, typer.Option(help="The policy to train; made if it is new.")] = None,
    base: Annotated[str | None, typer.Option(help="The base model; left out: the only one there is.")] = None,
    data: Annotated[str | None, typer.Option(help="A JSON Lines file, or the digest of rows that were put.")] = None,
    held_out: Annotated[str | None, typer.Option(help="Rows for the gate: a file or a digest.")] = None,
    scorer: Annotated[str | None, typer.Option(help="label or loss.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="A completion to choose from, for scorer label.")] = None,
    min_gain: Annotated[float | None, typer.Option(help="What the gate asks for over the base.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the adapter.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Adam's learning rate.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    batch_rows: Annotated[int | None, typer.Option(help="Rows per step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of order and initial weights.")] = None,
    promote: Annotated[bool, typer.Option("--promote", help="Move the alias when the gate is passed.")] = False,
    alias: Annotated[str | None, typer.Option(help="The alias to move; production if left out.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key and job give the same job.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the job and its data; estimate tokens.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    json: Json = False,
) -> None:
    """Train a policy."""
    flags: JobSpec = {
        "policy": policy,
        "base": base,
        "evaluation": {"scorer": scorer, "labels": label or None, "min_gain_over_base": min_gain},
        "adapter": {"rank": rank},
        "optimizer": {"learning_rate": learning_rate},
        "training": {"steps": steps, "batch_rows": batch_rows, "seed": seed},
        "promotion": {"alias": alias, "rule": "on_pass" if promote else None},
        "idempotency_key": idempotency_key,
    }
    spec = _merge(_read_job(file) if file else {}, flags)
    if dry_run:
        _dry_run(spec, data, json)
        return
    job, ended = asyncio.run(_train(spec, data, held_out, watch=watch, quiet=json))
    if ended is not None:
        show_ends([ended], json)
    elif json:
        print_json(job)
    else:
        say(f"job {job.job_id} is {job.state}; follow it with: openmint watch {job.job_id}")


async def _train(
    spec: JobSpec, data: str | None, held_out: str | None, *, watch: bool, quiet: bool
) -> tuple[JobAnswer, JobAnswer | None]:
    async with connect() as client:
        if "base" not in spec:
            spec["base"] = await _only_base(client)
        if data is not None:
            spec["dataset"] = await _dataset(client, data)
        if held_out is not None:
            spec.setdefault("evaluation", {})["held_out"] = await _dataset(client, held_out)
        job = await client.submit(as_request(spec))
        if not watch:
            return job, None
        return job, (await follow(client, [str(job.job_id)], 86_400.0, quiet=quiet))[0]


async def _only_base(client: Client) -> str:
    """The base model to take when none is named. Raises: BadRequest, naming the choice, when there is one to make."""
    known = [base.name for base in await client.bases()]
    if len(known) != 1:
        raise BadRequest(f"name a base with --base: {', '.join(known) or 'none is known'}", field="base")
    return known[0]


async def _dataset(client: Client, text: str) -> JobSpec:
    if text.startswith("sha256:"):
        return {"digest": text}
    return {"digest": (await client.put_data(read_rows(Path(text)))).digest}


def as_request(spec: JobSpec) -> TrainRequested:
    """The job, checked here before anything is sent. Raises: BadRequest naming the field."""
    from pydantic import ValidationError

    try:
        return TrainRequested.model_validate(spec)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise BadRequest(f"{field}: {message}" if field else message, field=field or None) from error


def _read_job(path: Path) -> JobSpec:
    import yaml

    try:
        spec = yaml.safe_load(path.read_text())
    except OSError as error:
        raise BadRequest(f"can't read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise BadRequest(f"{path} is neither YAML nor JSON: {error}") from error
    if not isinstance(spec, dict):
        raise BadRequest(f"{path} does not hold a job")
    return spec


def _merge(spec: JobSpec, flags: JobSpec) -> JobSpec:
    """The file's job with what flags say put over it."""
    merged = dict(spec)
    for name, value in flags.items():
        if isinstance(value, dict):
            inner = _merge(merged.get(name) or {}, value)
            if inner:
                merged[name] = inner
        elif value is not None:
            merged[name] = value
    return merged


def _dry_run(spec: JobSpec, data: str | None, json: bool) -> None:
    """Ask the trainer's own estimate, in a process of its own: it needs a tokenizer, and this one loads none."""
    if data is not None and data.startswith("sha256:"):
        raise BadDataset("a dry run reads the rows from a file; give --data a path")
    if data is not None:
        spec = {**spec, "dataset": {"digest": "sha256:" + "0" * 64}}
    request = as_request(spec)
    folder = asyncio.run(_base_folder(request.base))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "job.json"
        path.write_text(request.model_dump_json(exclude_none=True))
        command = [sys.executable, "-m", "openmint_trainer.estimate", "--base-folder", folder, "--spec", str(path)]
        if data is not None:
            command += ["--data", data]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        estimate: JobSpec = json_text.loads(done.stdout)
    except ValueError as error:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise OpenmintError(f"the estimate could not be made: {reason}") from error
    if "error" in estimate:
        found = estimate["error"]
        kind = BadDataset if found.get("code") == BadDataset.code else BadRequest
        raise kind(found["detail"], field=found.get("field"))
    if json:
        print_json(estimate)
        return
    say(f"{estimate['rows']} rows, {estimate['tokens_in_dataset']} tokens, longest row {estimate['longest_row']}")
    say(f"{estimate['steps']} steps see {estimate['tokens']} tokens: {estimate['epochs']} epochs")
    say(f"about {estimate['seconds']:.0f} s at {estimate['tokens_per_s']} tokens/s on one CPU core")
    say(f"adapter of {estimate['adapter_bytes']} bytes on {', '.join(estimate['targets'])}")
    for warning in estimate["warnings"]:
        say(f"warning: {warning}")


async def _base_folder(base: str) -> str:
    """Where the base model lies on this machine: where the catalogue says, or in the state directory."""
    local = operator_settings_folder(base)
    if local is not None:
        return local
    from openmint.catalog import Catalog, bases

    catalog = await Catalog.open(operator_settings().postgres_dsn, max_size=1)
    try:
        async with catalog.connection() as conn:
            return (await bases.find_base(conn, base)).locator
    finally:
        await catalog.close()


def operator_settings_folder(base: str) -> str | None:
    """The base's folder below the state directory, if it is there."""
    from openmint.cli.profile import state_dir
    from openmint.identifiers import check_name

    folder = state_dir() / "bases" / check_name(base, "base model")
    if (folder / "config.json").exists():
        return str(folder)
    if not (state_dir() / "endpoints.json").exists():
        raise NotFound(f"there is no base model {base!r} in {state_dir() / 'bases'}", field="base")
    return None
