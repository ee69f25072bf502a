"""Parts of one service that stand or fall together, such as its work and its outbox relay."""

import asyncio
from collections.abc import Coroutine

from openmint.endings import end


async def run_until_one_ends(*parts: Coroutine[object, object, None]) -> None:
    """Run the parts side by side until one returns or fails; a relay that died must not go unnoticed."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
    finally:
        await end(*tasks)
