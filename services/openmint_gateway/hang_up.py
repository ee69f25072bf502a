"""Work that ends when its client leaves, and what a waiting client is sent meanwhile. One task each, no more."""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from openmint.endings import end
from openmint_gateway.asgi_input import ClientLeft, Receive, wait_for_hang_up


class WhileClientStays:
    """A block that is cancelled when the client hangs up, which then raises ClientLeft; any other end passes."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._has_left = False
        self._task: asyncio.Task[object] | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._watcher is not None
        self._watcher.cancel()
        if not self._has_left:
            return
        assert self._task is not None
        if kind is None or not issubclass(kind, asyncio.CancelledError):
            try:
                await asyncio.sleep(0)  # It left just now: the cancellation comes with the next wait.
            except asyncio.CancelledError:
                self._task.uncancel()
            return
        if self._task.uncancel() == 0:
            raise ClientLeft from error

    async def _watch(self) -> None:
        await wait_for_hang_up(self._receive)
        self._has_left = True
        assert self._task is not None
        self._task.cancel()


class Comments:
    """Sends a comment after `hold_s` and then every `every_s` until it is stopped; no task is made before the first."""

    def __init__(self, comment: Callable[[], Awaitable[None]], hold_s: float, every_s: float) -> None:
        self._comment = comment
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None
        self._start = asyncio.get_running_loop().call_later(hold_s, self._begin)

    async def stop(self) -> None:
        """No more of them; none is half sent when this returns."""
        self._start.cancel()
        if self._task is not None:
            await end(self._task)

    def _begin(self) -> None:
        self._task = asyncio.create_task(self._go_on())

    async def _go_on(self) -> None:
        while True:
            await self._comment()
            await asyncio.sleep(self._every_s)
