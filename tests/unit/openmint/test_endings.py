"""Tasks that are told to end do end."""

import asyncio

import pytest

from openmint import endings
from openmint.endings import end, finish


async def test_a_task_that_lost_its_first_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "CANCEL_AGAIN_S", 0.02)
    answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def ask_for_ever() -> None:
        await asyncio.wait_for(answered, 60)  # The answer and the cancellation come together, and the latter is lost.
        await asyncio.sleep(60)

    task = asyncio.create_task(ask_for_ever())
    await asyncio.sleep(0)
    answered.set_result("yes")
    async with asyncio.timeout(5):
        outcomes = await end(task)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert task.cancelling() >= 2


async def test_results_and_errors_of_what_ended_by_itself_are_kept_in_order() -> None:
    async def fail() -> None:
        raise ValueError("broken")

    async def give() -> int:
        return 7

    tasks = [asyncio.create_task(fail()), asyncio.create_task(give())]
    await asyncio.wait(tasks)
    error, seven = await end(*tasks)
    assert isinstance(error, ValueError)
    assert seven == 7


async def test_ending_nothing_is_no_error() -> None:
    assert await end() == []


async def test_what_must_be_finished_is_finished_before_the_cancellation_goes_on() -> None:
    done: list[str] = []

    async def tidy() -> None:
        await asyncio.sleep(0.05)
        done.append("tidy")

    task = asyncio.create_task(finish(tidy()))
    await asyncio.sleep(0.01)
    outcomes = await end(task)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert done == ["tidy"]
