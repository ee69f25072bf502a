"""Queue depth while a run goes on: the scheduler is asked a few times a second, which costs it a millisecond each."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from load.plots.events import OURS, DepthEvent, EventWriter
from openmint.endings import end

SAMPLE_EVERY_S = 0.25

Look = Callable[[], Awaitable[dict[str, Any] | None]]
"""What a scheduler tells of itself, such as `OpenmintStack.snapshot`; None while nobody leads."""


@contextlib.asynccontextmanager
async def depth_recorded(
    look: Look, writer: EventWriter, zero_s: float, *, variant: str = OURS, every_s: float = SAMPLE_EVERY_S
) -> AsyncGenerator[None]:
    """Write a depth event every `every_s` while the block runs; `zero_s` is the run's zero on `time.monotonic()`."""

    async def sample() -> None:
        while True:
            seen = await look()
            if seen is not None:
                writer.write(depth_of(seen, time.monotonic() - zero_s, variant))
            await asyncio.sleep(every_s)

    sampling = asyncio.create_task(sample())
    try:
        yield
    finally:
        await end(sampling)


def depth_of(seen: dict[str, Any], t: float, variant: str = OURS) -> DepthEvent:
    """One snapshot as an event."""
    loads = seen.get("loads", ())
    waiting = Counter(str(load["load_class"]) for load in loads if load["phase"] == "waiting")
    under_way = sum(load["phase"] != "waiting" for load in loads)
    return DepthEvent(t=t, variant=variant, waiting=dict(waiting), under_way=under_way)
