"""The killer: a seeded sequence of faults against the parts of a local stack.

SIGKILL kills a process; SIGSTOP beyond a lease and then SIGCONT makes a zombie, which wakes up believing that it still
holds its work.
"""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from openmint.local_stack import StackDown, status

Fault = Literal["kill", "stop"]

STOPPABLE = ("trainer", "exporter", "evaluator", "scheduler", "keeper")
"""Parts that hold leases or locks, and so can become zombies."""


@dataclass(frozen=True, slots=True)
class Blow:
    """One fault: what, against which part, and how long to wait before the next."""

    part: str
    fault: Fault
    pause_s: float


def plan_blows(
    seed: int, kills: int, parts: Sequence[str], engine_kills: int, pause_s: tuple[float, float]
) -> list[Blow]:
    """A sequence of `kills` faults. Engines take a minute to come back, so at most `engine_kills` of them are hit."""
    generator = random.Random(seed)
    engines = [part for part in parts if part.startswith("engine-")]
    others = [part for part in parts if not part.startswith("engine-")]
    engine_turns = set(generator.sample(range(kills), min(engine_kills, kills))) if engines else set[int]()
    blows: list[Blow] = []
    for turn in range(kills):
        part = generator.choice(engines) if turn in engine_turns else generator.choice(others)
        may_stop = part.split("-")[0] in STOPPABLE
        fault: Fault = "stop" if may_stop and generator.random() < 0.4 else "kill"
        blows.append(Blow(part, fault, generator.uniform(*pause_s)))
    return blows


async def strike(state_dir: Path, blow: Blow, stop_s: float, told: Callable[[str], None]) -> bool:
    """Carry out one fault; False when the part was not running at that moment.

    A stopped process is continued after `stop_s` by a task of its own, so that the next blow need not wait.
    """
    try:
        pid = status(state_dir).pid_of(blow.part)
    except StackDown:
        return False
    if pid <= 0:
        return False
    try:
        if blow.fault == "kill":
            os.kill(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGSTOP)
    except ProcessLookupError:
        return False
    told(f"{'SIGKILL' if blow.fault == 'kill' else f'SIGSTOP for {stop_s:.0f} s'} {blow.part} (pid {pid})")
    if blow.fault == "stop":
        task = asyncio.create_task(_continue_later(pid, stop_s))
        _sleepers.add(task)
        task.add_done_callback(_sleepers.discard)
    return True


_sleepers: set[asyncio.Task[None]] = set()


async def _continue_later(pid: int, after_s: float) -> None:
    try:
        await asyncio.sleep(after_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def continue_all() -> None:
    """Wait until every stopped process has been continued."""
    if _sleepers:
        await asyncio.gather(*_sleepers)
