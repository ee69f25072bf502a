"""The one thread in which everything with tensors happens.

The event loop stays free, so leases are held and facts are heard during a step of any length.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class TrainingThread:
    """Runs calls one after another, in the order in which they were made."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="training")

    async def run(self, call: Callable[[], T]) -> T:
        """The call's result or its error."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    def close(self) -> None:
        """Wait for the call under way."""
        self._pool.shutdown(wait=True, cancel_futures=True)
