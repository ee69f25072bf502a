"""Ending tasks for certain.

One `cancel` is not enough: in Python 3.11 `asyncio.wait_for`, which the clients of NATS and Postgres are built on,
drops a cancellation that arrives in the moment its answer does, and the task goes on as if nobody had asked.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

CANCEL_AGAIN_S = 5.0
"""Long enough for what tidies up on its way out, which a second cancellation would interrupt."""


async def end(*tasks: asyncio.Task[Any]) -> list[object]:
    """Cancel the tasks until each has ended, and return how: its result or its error, cancellation included."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)
    return await asyncio.gather(*tasks, return_exceptions=True)


async def finish(work: Coroutine[Any, Any, object]) -> None:
    """Do what must not be left half done, such as tidying up: a cancellation waits until it is over.

    A second one, which `end` sends when this takes long, is not waited out; the work then goes on by itself.
    Raises: what `work` raises, and CancelledError afterwards.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
