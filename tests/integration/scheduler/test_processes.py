"""Scheduler processes as they are started, stopped, killed and frozen; a second one stands by in this process."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process

import pytest
from nats.errors import NoRespondersError

from openmint.engines.scheduler_view import query_subject

pytestmark = pytest.mark.slow


@pytest.fixture
async def process(fleet):
    environment = {
        **os.environ,
        "OPENMINT_NATS_URL": fleet.settings.nats_url,
        "OPENMINT_NATS_USER": fleet.settings.nats_user,
        "OPENMINT_NATS_PASSWORD": fleet.settings.nats_password,
        "OPENMINT_POSTGRES_DSN": fleet.settings.postgres_dsn,
        "OPENMINT_STORE_URL": fleet.settings.store_url,
        "OPENMINT_STATE_DIR": str(fleet.settings.state_dir),
        "OPENMINT_HEALTH_FILE": str(fleet.settings.state_dir / "health.json"),
        "OPENMINT_BASES": fleet.base,
    }
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "openmint_scheduler.app", env=environment, stdout=PIPE
    )
    assert started.stdout is not None
    async with asyncio.timeout(60):
        while "leader.started" not in (line := (await started.stdout.readline()).decode()):
            assert line, "it ended before it led"
    yield started
    if started.returncode is None:
        started.send_signal(signal.SIGCONT)
        started.kill()
        await started.communicate()


async def epoch_of_leader(fleet) -> int:
    async with asyncio.timeout(10):
        while True:  # It says that it leads just before it listens.
            with contextlib.suppress(NoRespondersError):
                answer = await fleet.bus.nc.request(query_subject(fleet.base), b"", timeout=5)
                return json.loads(answer.data)["epoch"]
            await asyncio.sleep(0.05)


async def takeover_s(fleet, process: Process, number: signal.Signals, eventually) -> float:
    second = await fleet.scheduler("second")
    await asyncio.sleep(0.3)
    shell = second.shells[fleet.base]
    assert shell.conductor is None
    started_s = time.monotonic()
    process.send_signal(number)
    await eventually(lambda: shell.conductor is not None, within_s=30.0)
    took_s = time.monotonic() - started_s
    print(f"{number.name}: another led after {took_s:.2f} s")
    assert shell.conductor.epoch == 2
    return took_s


async def test_a_stopped_scheduler_ends_cleanly_and_another_leads_at_once(fleet, process, eventually):
    assert await epoch_of_leader(fleet) == 1
    assert await takeover_s(fleet, process, signal.SIGTERM, eventually) <= 8.0
    assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_a_killed_leader_is_replaced_within_three_seconds(fleet, process, eventually):
    assert await takeover_s(fleet, process, signal.SIGKILL, eventually) <= 3.0


async def test_a_frozen_leader_is_replaced_within_eight_seconds_and_steps_back_when_it_wakes(
    fleet, process, eventually
):
    assert await takeover_s(fleet, process, signal.SIGSTOP, eventually) <= 8.0
    process.send_signal(signal.SIGCONT)
    assert process.stdout is not None
    async with asyncio.timeout(20):
        while "leader.ended" not in (await process.stdout.readline()).decode():
            pass
    assert process.returncode is None
