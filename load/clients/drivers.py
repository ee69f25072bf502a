"""Drivers: calls at given times whatever the answers do, or a number of users who each wait for theirs."""

import asyncio
import time
from collections.abc import Iterator, Sequence

from load.clients.records import Call, Outcome, Target


async def at_once(target: Target, calls: Sequence[Call]) -> list[Outcome]:
    """All calls in one moment; outcomes in their order."""
    return list(await asyncio.gather(*(target.ask(call) for call in calls)))


async def open_loop(target: Target, arrivals: Sequence[tuple[float, Call]]) -> list[Outcome]:
    """Send each call at its second from the start, answered or not; outcomes in the order of arrivals.

    Times to the first token count from the second that the call was due.
    """
    start_s = time.monotonic()
    running: list[asyncio.Task[Outcome]] = []
    for due_s, call in sorted(arrivals, key=lambda arrival: arrival[0]):
        scheduled_s = start_s + due_s
        if (pause_s := scheduled_s - time.monotonic()) > 0:
            await asyncio.sleep(pause_s)
        running.append(asyncio.create_task(target.ask(call, scheduled_s)))
    return list(await asyncio.gather(*running))


async def closed_loop(
    target: Target, clients: int, calls: Iterator[Call], duration_s: float, pause_after_refusal_s: float = 2.0
) -> list[Outcome]:
    """`clients` users, each with one call at a time, who take the next of `calls` until the time is over.

    A user who is refused pauses for as long as the answer says, or for `pause_after_refusal_s`, and takes another
    call. What is under way at the end is waited for.
    """
    end_s = time.monotonic() + duration_s
    outcomes: list[Outcome] = []

    async def user() -> None:
        while time.monotonic() < end_s:
            call = next(calls, None)
            if call is None:
                return
            outcome = await target.ask(call)
            outcomes.append(outcome)
            if outcome.is_refused:
                pause_s = outcome.retry_after_s or pause_after_refusal_s
                await asyncio.sleep(min(pause_s, max(0.0, end_s - time.monotonic())))
            elif outcome.is_fault:
                await asyncio.sleep(0.1)  # A server that is down must not be asked in a busy loop.

    await asyncio.gather(*(user() for _ in range(clients)))
    return outcomes
