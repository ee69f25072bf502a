import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from openmint_gateway.asgi_input import ClientLeft
from openmint_gateway.hang_up import Comments, WhileClientStays


def client() -> tuple[Callable[[], Awaitable[dict[str, Any]]], Callable[[], None]]:
    """A client's `receive`, and what makes it hang up."""
    left = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    return receive, left.set


async def test_work_ends_when_its_client_leaves():
    receive, hang_up = client()
    asyncio.get_running_loop().call_later(0.02, hang_up)
    with pytest.raises(ClientLeft):
        async with WhileClientStays(receive):
            await asyncio.sleep(10)
    await asyncio.sleep(0)  # Nothing of the cancellation is left.
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_work_that_is_done_is_not_cut_off_by_a_client_that_leaves_at_that_moment():
    receive, hang_up = client()
    async with WhileClientStays(receive):
        await asyncio.sleep(0)
        hang_up()
    await asyncio.sleep(0.01)


async def test_errors_and_answers_pass_as_they_are():
    receive, _ = client()
    async with WhileClientStays(receive):
        answer = 42
    assert answer == 42
    with pytest.raises(ValueError, match="mine"):
        async with WhileClientStays(receive):
            raise ValueError("mine")


async def test_a_cancellation_from_outside_stays_one():
    receive, _ = client()

    async def work() -> None:
        async with WhileClientStays(receive):
            await asyncio.sleep(10)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_comments_begin_after_a_while_and_end_when_they_are_stopped():
    sent: list[float] = []

    async def comment() -> None:
        sent.append(asyncio.get_running_loop().time())

    early = Comments(comment, 0.05, 0.01)
    await early.stop()
    comments = Comments(comment, 0.02, 0.01)
    await asyncio.sleep(0.2)
    await comments.stop()
    count = len(sent)
    assert count >= 2
    await asyncio.sleep(0.05)
    assert len(sent) == count
