"""One chaos run: a stack of its own, jobs, faults, quiet, and the oracle's word."""

import asyncio
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import nats
from nats.errors import Error as NatsError

from openmint.adapters.store import Store
from openmint.catalog.keys import create_key
from openmint.chaos.killer import continue_all, plan_blows, strike
from openmint.chaos.oracle import SeenFact, Verdict, judge_catalogue, judge_events, judge_store, open_work
from openmint.events import TrainRequested
from openmint.local_stack import EngineSpec, StackPlan, down, free_port, secret_file, status, up
from openmint.settings import CommonSettings

TENANT = "chaos"
LEASE_S = 6.0
"""Short, so that a paused worker is replaced within the run."""

STOP_S = 10.0
"""Longer than a lease: the paused worker wakes up as a zombie."""


@dataclass(frozen=True, slots=True)
class ChaosOptions:
    """What a run does. Defaults: 25 kills while 20 jobs run."""

    state_dir: Path
    tokenizer_from: Path
    """A base folder whose tokenizer the tiny base takes over."""
    kills: int = 25
    seed: int = 1
    jobs: int = 20
    policies: int = 5
    engine_kills: int = 1
    pause_s: tuple[float, float] = (1.5, 4.0)
    settle_s: float = 600.0
    fencing: bool = True
    fault_parts: tuple[str, ...] = ()
    """Only these parts are hit; empty: every part."""


@dataclass(slots=True)
class ChaosReport:
    """What happened and what the oracle says."""

    seed: int
    fencing: bool
    blows: list[str] = field(default_factory=list[str])
    accepted: int = 0
    aliases_answering: int = 0
    settle_s: float = 0.0
    verdict: Verdict = field(default_factory=Verdict)


def make_base(options: ChaosOptions) -> Path:
    """The tiny base of this run; made in a child process, because this one has no torch."""
    folder = options.state_dir / "bases" / "tiny"
    if not (folder / "config.json").exists():
        subprocess.run(
            [sys.executable, "-m", "openmint_engine_host.tiny_base",
             "--tokenizer-from", str(options.tokenizer_from), "--out", str(folder)],
            check=True, capture_output=True,
        )  # fmt: skip
    return folder


def plan(options: ChaosOptions) -> StackPlan:
    """Two of each worker, so that a paused one is replaced; one fp32 engine in both pools, so that it fits."""
    environment = {
        "OPENMINT_TRAINER_LEASE_S": str(LEASE_S),
        "OPENMINT_EXPORTER_LEASE_S": str(LEASE_S),
        "OPENMINT_EVALUATOR_LEASE_S": str(LEASE_S),
        "OPENMINT_EVALUATOR_RETRY_S": "2",
        "OPENMINT_TRAINER_POLL_S": "1",
        "OPENMINT_KEEPER_ANNOUNCE_AFTER_S": "5",
        "OPENMINT_MAX_MODEL_LEN": "512",
    }
    if not options.fencing:
        environment["OPENMINT_UNSAFE_NO_FENCING"] = "1"
    return StackPlan(
        state_dir=options.state_dir,
        engines=(EngineSpec("one", "float32", ("serve", "gate-fp32")),),
        base_folders=(make_base(options),),
        gateway_port=free_port(),
        extra_env=environment,
        copies={"trainer": 2, "exporter": 2, "scheduler": 2},
    )


def job(number: int, options: ChaosOptions) -> TrainRequested:
    """A job of seconds, so that a paused trainer holds one; each policy gets several: its alias is contended."""
    generator = random.Random(options.seed * 1000 + number)
    rows = [
        {"prompt": f"{a} and {b} make", "completion": f" {a + b}"}
        for a, b in ((generator.randrange(50), generator.randrange(50)) for _ in range(8))
    ]
    return TrainRequested.model_validate(
        {
            "policy": f"policy-{number % options.policies}",
            "base": "tiny",
            "dataset": {"rows": rows},
            "adapter": {"rank": 4, "alpha": 8},
            "optimizer": {"learning_rate": 0.02},
            "training": {"steps": 80, "batch_rows": 4, "max_tokens_per_row": 64, "checkpoint_every_steps": 20,
                         "seed": number},
            "promotion": {"alias": "production", "rule": "on_pass"},
            "idempotency_key": f"chaos-{options.seed}-{number}",
        }
    )  # fmt: skip


async def run(options: ChaosOptions, told: Callable[[str], None]) -> ChaosReport:
    """Carry out a run. The stack is stopped at the end; its state directory stays for whoever looks into a failure."""
    shutil.rmtree(options.state_dir / "store", ignore_errors=True)
    report = ChaosReport(options.seed, options.fencing)
    stack = plan(options)
    told("starting the stack")
    seen = await asyncio.to_thread(up, stack)
    settings = CommonSettings(state_dir=options.state_dir).resolve()
    try:
        await _wait_for_engine(settings, seen.gateway_url, told)
        accepted = await _submit_and_strike(options, settings, report, told)
        report.accepted = len(accepted)
        started = time.monotonic()
        await _settle(options, settings, told)
        report.settle_s = time.monotonic() - started
        await _judge(settings, accepted, report)
        await _ask_every_alias(settings, seen.gateway_url, report)
    finally:
        await continue_all()
        await asyncio.to_thread(down, options.state_dir)
    return report


async def _connect(settings: CommonSettings) -> asyncpg.Connection:
    """A connection of our own; Postgres may be down at this very moment."""
    for _ in range(120):
        try:
            return await asyncpg.connect(settings.postgres_dsn, timeout=5)
        except (OSError, asyncpg.PostgresError, TimeoutError):
            await asyncio.sleep(0.5)
    return await asyncpg.connect(settings.postgres_dsn, timeout=5)


async def _key(settings: CommonSettings) -> str:
    pepper = secret_file(settings.state_dir, "pepper.key").encode()
    connection = await _connect(settings)
    try:
        async with connection.transaction():
            text, _ = await create_key(connection, TENANT, ["read", "infer"], pepper=pepper)
        return text
    finally:
        await connection.close()


async def _wait_for_engine(settings: CommonSettings, url: str, told: Callable[[str], None]) -> None:
    """Until the base itself answers through the gateway."""
    key = await _key(settings)
    deadline = time.monotonic() + 300
    async with httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60) as client:
        while time.monotonic() < deadline:
            try:
                body = {"model": "tiny", "prompt": "1", "max_tokens": 1}
                if (await client.post("/v1/completions", json=body)).status_code == 200:
                    told("the engine answers")
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(1)
    raise TimeoutError("the engine did not answer within 300 s")


async def _submit_and_strike(
    options: ChaosOptions, settings: CommonSettings, report: ChaosReport, told: Callable[[str], None]
) -> list[str]:
    """Publish jobs while parts are being hit; returns the ids of the accepted ones."""
    parts = [part.name for part in status(options.state_dir).parts if part.name != "supervisor"]
    if options.fault_parts:
        parts = [part for part in parts if part in options.fault_parts]
    blows = plan_blows(options.seed, options.kills, parts, options.engine_kills, options.pause_s)
    publishing = asyncio.create_task(_publish_all(options, settings))
    for blow in blows:
        await asyncio.sleep(blow.pause_s)
        if await strike(options.state_dir, blow, STOP_S, lambda line: (report.blows.append(line), told(line))[1]):
            continue
        told(f"{blow.part} was already down")
    await publishing
    await continue_all()
    return await _accepted_ids(options, settings)


async def _publish_all(options: ChaosOptions, settings: CommonSettings) -> None:
    """Publish every job until the stream has taken it; a second publish is harmless by its idempotency key."""
    for number in range(options.jobs):
        body = job(number, options).model_dump_json(exclude_none=True).encode()
        while not await _publish(settings, f"openmint.train.requested.v1.{TENANT}.job-{number}", body):
            await asyncio.sleep(0.5)
        await asyncio.sleep(options.pause_s[0] * options.kills / max(options.jobs, 1) / 2)


async def _publish(settings: CommonSettings, subject: str, body: bytes) -> bool:
    try:
        client = await nats.connect(
            settings.nats_url, user=settings.nats_user, password=settings.nats_password,
            connect_timeout=2, allow_reconnect=False,
        )  # fmt: skip
    except (NatsError, OSError, TimeoutError):
        return False
    try:
        await client.jetstream().publish(subject, body, timeout=3)
        return True
    except (NatsError, OSError, TimeoutError):
        return False
    finally:
        await client.close()


async def _accepted_ids(options: ChaosOptions, settings: CommonSettings) -> list[str]:
    """Wait until intake has answered every published job."""
    deadline = time.monotonic() + 120
    while True:
        connection = await _connect(settings)
        try:
            rows = await connection.fetch("select job_id::text from jobs where tenant = $1", TENANT)
        finally:
            await connection.close()
        if len(rows) >= options.jobs or time.monotonic() > deadline:
            return [row["job_id"] for row in rows]
        await asyncio.sleep(1)


async def _settle(options: ChaosOptions, settings: CommonSettings, told: Callable[[str], None]) -> None:
    """Faults are over: everything open must end within settle_s."""
    deadline = time.monotonic() + options.settle_s
    last = -1
    while time.monotonic() < deadline:
        connection = await _connect(settings)
        try:
            count = await open_work(connection)
            unsent = await connection.fetchval("select count(*) from outbox")
        finally:
            await connection.close()
        if count == 0 and unsent == 0:
            return
        if count != last:
            told(f"{count} jobs and revisions are still on their way")
            last = count
        await asyncio.sleep(1)


async def _judge(settings: CommonSettings, accepted: list[str], report: ChaosReport) -> None:
    connection = await _connect(settings)
    try:
        await judge_catalogue(connection, accepted, report.verdict)
        store = Store.open(settings.store_url)
        await judge_store(connection, await store.list("revisions/"), report.verdict)
    finally:
        await connection.close()
    if len(accepted) == 0:
        report.verdict.problems.append("no job was accepted")
    judge_events(await read_events(settings), accepted, report.verdict)


async def read_events(settings: CommonSettings) -> list[SeenFact]:
    """Everything in EVENTS, in order."""
    client = await nats.connect(settings.nats_url, user=settings.nats_user, password=settings.nats_password)
    try:
        stream = client.jetstream()
        info = await stream.stream_info("EVENTS")
        facts: list[SeenFact] = []
        for sequence in range(info.state.first_seq, info.state.last_seq + 1):
            message = await stream.get_msg("EVENTS", sequence)
            body: dict[str, Any] = json.loads(message.data or b"{}")
            kind = ".".join((message.subject or "").split(".")[:4])
            about = str(body.get("revision_id") or body.get("job_id") or body.get("policy_id") or "")
            if kind.startswith("openmint.job."):
                about = str(body.get("job_id") or "")
            facts.append(SeenFact(kind, str(body.get("event_id")), about, body.get("digest"), body))
        return facts
    finally:
        await client.close()


async def _ask_every_alias(settings: CommonSettings, url: str, report: ChaosReport) -> None:
    """Each alias answers, and the answer names the revision that the catalogue says."""
    key = await _key(settings)
    connection = await _connect(settings)
    try:
        rows = await connection.fetch(
            "select p.tenant, p.name, a.alias, encode(r.digest, 'hex') as hex from aliases a "
            "join policies p using (policy_id) join revisions r using (revision_id)"
        )
    finally:
        await connection.close()
    async with httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=120) as client:
        for row in rows:
            model = f"{row['tenant']}/{row['name']}@{row['alias']}"
            answer = await client.post("/v1/completions", json={"model": model, "prompt": "1 and", "max_tokens": 2})
            if answer.status_code != 200:
                report.verdict.problems.append(f"{model} answers {answer.status_code}: {answer.text[:200]}")
            elif answer.headers.get("x-openmint-revision") != f"sha256:{row['hex']}":
                report.verdict.problems.append(f"{model} answered with {answer.headers.get('x-openmint-revision')}")
            else:
                report.aliases_answering += 1
