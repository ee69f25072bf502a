"""What the faults scenario concludes from outcomes; the faults themselves need a stack."""

import asyncio

import pytest

from load.clients.records import Call, Outcome
from load.faults.traffic import Traffic, first_answer_s
from load.scenarios.faults import _longest_gap_s
from load.stack.policies import Policy

POLICY = Policy("t0", "p0")


def outcome(ended_s: float, *, error: str = "", tokens: int = 1, status: int = 200, policy: Policy = POLICY) -> Outcome:
    times = tuple(ended_s for _ in range(tokens))
    call = Call(policy, "x", 1)
    return Outcome(call, ended_s, ended_s, times[0] if times else None, ended_s, times, tokens, status, error=error)


class Answers:
    """A target whose policies answer from some second on."""

    name = "answers"

    def __init__(self, works_after_s: float) -> None:
        self.began_s = asyncio.get_running_loop().time()
        self.works_after_s = works_after_s
        self.asked: list[Policy] = []

    async def ask(self, call: Call, scheduled_s: float | None = None) -> Outcome:
        self.asked.append(call.policy)
        now_s = asyncio.get_running_loop().time()
        if now_s - self.began_s < self.works_after_s:
            await asyncio.sleep(60)
        return outcome(asyncio.get_running_loop().time())


def test_lost_requests_are_told_apart_by_their_first_token():
    traffic = Traffic(None, [POLICY], 0, 1, 0)  # pyright: ignore[reportArgumentType]  # nobody asks here
    traffic.outcomes = [
        outcome(1.0),
        outcome(2.0, error="lost: cut", tokens=3),
        outcome(3.0, error="engine_failed: gone", tokens=0, status=502),
        outcome(4.0, error="overloaded: full", tokens=0, status=503),
    ]
    assert [o.ended_s for o in traffic.lost_begun()] == [2.0]
    assert [o.ended_s for o in traffic.lost_unbegun()] == [3.0]


def test_the_longest_gap_begins_at_the_fault():
    seen = [outcome(9.0), outcome(11.0), outcome(16.0), outcome(30.0, policy=Policy("t1", "p1"))]
    assert _longest_gap_s(seen, POLICY, 10.0) == 5.0
    assert _longest_gap_s([outcome(14.0)], POLICY, 10.0) == 4.0


@pytest.mark.parametrize(("works_after_s", "at_least"), [(0.0, 0.0), (0.3, 0.3)])
async def test_recovery_counts_from_the_fault_and_one_stuck_request_does_not_hide_it(works_after_s, at_least):
    target = Answers(works_after_s)
    policies = iter(Policy("t0", f"cold{n}") for n in range(100))
    took_s = await first_answer_s(target, policies, target.began_s, 0.1, 5.0)  # pyright: ignore[reportArgumentType]
    assert at_least <= took_s < at_least + 0.5
    assert len(set(target.asked)) == len(target.asked)
