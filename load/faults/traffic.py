"""Traffic beside a fault: users who go on asking while something dies, and what they saw before, during and after."""

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence

from load.clients.records import Call, Outcome
from load.stack.openmint_stack import OpenmintStack
from load.stack.policies import Policy
from openmint.endings import end

PROMPT = "The quick brown fox counts to ten: one two three"
THINK_S = 0.25


class Traffic:
    """Users in a closed loop over some policies, for as long as the block lasts."""

    def __init__(
        self,
        stack: OpenmintStack,
        policies: Sequence[Policy],
        users: int,
        tokens: int,
        seed: int,
        think_s: float = THINK_S,
    ) -> None:
        self.outcomes: list[Outcome] = []
        self._stack, self._policies, self._users, self._tokens = stack, list(policies), users, tokens
        self._random = random.Random(seed)
        self._think_s = think_s
        self._tasks: list[asyncio.Task[None]] = []
        self._is_over = False

    async def __aenter__(self) -> "Traffic":
        self._tasks = [asyncio.create_task(self._user()) for _ in range(self._users)]
        return self

    async def __aexit__(self, *_: object) -> None:
        """What is under way is waited for."""
        self._is_over = True
        await asyncio.gather(*self._tasks)

    def lost_unbegun(self) -> list[Outcome]:
        """Requests that were neither answered nor refused although no token of theirs had come."""
        return [outcome for outcome in self.outcomes if outcome.is_fault and not outcome.token_s]

    def lost_begun(self) -> list[Outcome]:
        """Requests that broke off after their first token."""
        return [outcome for outcome in self.outcomes if outcome.is_fault and outcome.token_s]

    async def _user(self) -> None:
        while not self._is_over:
            call = Call(self._random.choice(self._policies), PROMPT, self._tokens)
            self.outcomes.append(await self._stack.ask(call))
            await asyncio.sleep(self._think_s)


async def warm(stack: OpenmintStack, policies: Sequence[Policy], at_once: int = 4) -> None:
    """Ask each policy for a token, a few at a time, until all have answered."""
    left: Iterator[Policy] = iter(policies)

    async def one_after_another() -> None:
        for policy in left:
            while not (await stack.ask(Call(policy, PROMPT, 1))).is_answered:
                await asyncio.sleep(0.2)

    await asyncio.gather(*(one_after_another() for _ in range(at_once)))


async def first_answer_s(
    stack: OpenmintStack, policies: Iterator[Policy], since_s: float, every_s: float, limit_s: float
) -> float:
    """Seconds from `since_s` to the first token of any policy asked since, one new one every `every_s`.

    Infinity when none answers within the limit.
    """
    asked: set[asyncio.Task[Outcome]] = set()
    due_s = since_s
    try:
        while (now_s := time.monotonic()) - since_s < limit_s:
            if now_s >= due_s:
                due_s = now_s + every_s
                asked.add(asyncio.create_task(stack.ask(Call(next(policies), PROMPT, 1))))
            if not asked:
                await asyncio.sleep(due_s - now_s)
                continue
            done, asked = await asyncio.wait(asked, timeout=due_s - now_s, return_when=asyncio.FIRST_COMPLETED)
            answers = [o for o in (task.result() for task in done) if o.is_answered and o.first_token_s is not None]
            if answers:
                return min(o.first_token_s or math.inf for o in answers) - since_s
    finally:
        await end(*asked)
    return math.inf


async def until(condition: Callable[[], object], limit_s: float, every_s: float = 0.1) -> float:
    """Seconds until an awaitable condition is true; infinity when it never is."""
    began = time.monotonic()
    while time.monotonic() - began < limit_s:
        answer = condition()
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer:
            return time.monotonic() - began
        await asyncio.sleep(every_s)
    return float("inf")
