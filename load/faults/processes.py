"""Processes of a stack and its engines: found by what they are, killed or stopped as a fault would."""

import contextlib
import os
import signal
import time

import asyncpg
import psutil

from load.stack.openmint_stack import OpenmintStack


def engine_processes(stack: OpenmintStack, engine: str) -> list[psutil.Process]:
    """vLLM's processes below an engine's host: the server and everything that it started."""
    host = psutil.Process(stack.pid_of(f"engine-{engine}"))
    found: list[psutil.Process] = []
    for child in host.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "inspection_child" not in " ".join(child.cmdline()):
                found += [child, *child.children(recursive=True)]
    return found


def kill_engine(stack: OpenmintStack, engine: str) -> None:
    """SIGKILL to all of an engine at once; its host lives and starts another boot."""
    for process in engine_processes(stack, engine):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


async def leader_pid(stack: OpenmintStack) -> int:
    """The scheduler process that leads the base, by the catalogue."""
    connection = await asyncpg.connect(stack.settings.postgres_dsn)
    try:
        owner = await connection.fetchval("select owner from leaders where base = $1", stack.base)
    finally:
        await connection.close()
    return int(str(owner).rpartition("-")[2])


def send(pid: int, number: signal.Signals) -> None:
    """A signal to one process, if it is there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def age_s(pid: int) -> float:
    """For how long a process has run; 0 when there is none."""
    try:
        return time.time() - psutil.Process(pid).create_time() if pid else 0.0
    except psutil.NoSuchProcess:
        return 0.0
