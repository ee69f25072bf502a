import asyncio
import math
import time
from dataclasses import replace

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from load.clients.completions import complete, make_session
from load.clients.drivers import at_once, closed_loop, open_loop
from load.clients.figures import percentile, summarise
from load.clients.records import Call, Outcome
from load.stack.policies import Policy, make_policies

POLICY = Policy("t0", "p0")


def call(max_tokens: int = 2, *, stream: bool = True) -> Call:
    return Call(POLICY, "say", max_tokens, stream=stream)


def outcome(ttft_s: float = 0.1, status: int = 200, error: str = "", policy: Policy = POLICY) -> Outcome:
    first = 10.0 + ttft_s if status == 200 else None
    times = () if first is None else (first,)
    return Outcome(replace(call(), policy=policy), 10.0, 10.0, first, 10.0 + ttft_s, times, 1, status, error=error)


class Answering:
    """A target that answers after a fixed time, or refuses."""

    name = "answering"

    def __init__(self, status: int = 200, takes_s: float = 0.01) -> None:
        self.status, self.takes_s = status, takes_s
        self.most = self.now = 0

    async def ask(self, call: Call, scheduled_s: float | None = None) -> Outcome:
        began_s = time.monotonic()
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(self.takes_s)
        self.now -= 1
        ended_s = time.monotonic()
        first_s = ended_s if self.status == 200 else None
        error = "" if self.status == 200 else "overloaded: full"
        return Outcome(call, scheduled_s or began_s, began_s, first_s, ended_s, (), 1, self.status, 0.05, error=error)


def test_percentile_is_a_value_that_was_seen() -> None:
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.95) == 4.0
    assert math.isnan(percentile([], 0.5))


def test_refusals_at_once_and_within_a_stream_are_refusals_and_no_faults() -> None:
    at_the_door = outcome(status=429, error="overloaded: full")
    late = outcome(error="load_timeout: too late")
    broken = outcome(error="lost: the stream ended early")
    assert [o.is_refused for o in (at_the_door, late, broken)] == [True, True, False]
    assert [o.is_fault for o in (at_the_door, late, broken)] == [False, False, True]


def test_goodput_counts_answers_within_the_bound_alone() -> None:
    others = make_policies(2)
    found = summarise(
        [outcome(1.0), outcome(7.0, policy=others[1]), outcome(20.0), outcome(status=503, error="no")], wall_s=10.0
    )
    assert found.goodput == (0.1, 0.2)
    assert (found.answered, found.refused, found.faults, found.distinct_answered) == (3, 1, 0, 2)


async def test_open_loop_sends_on_time_although_answers_are_late() -> None:
    target = Answering(takes_s=0.2)
    found = await open_loop(target, [(0.0, call()), (0.05, call()), (0.1, call())])
    assert target.most == 3
    due = [o.scheduled_s - found[0].scheduled_s for o in found]
    assert due == pytest.approx([0.0, 0.05, 0.1], abs=1e-6)
    assert all(o.ttft_s is not None and o.ttft_s >= 0.2 for o in found)


async def test_closed_loop_keeps_so_many_users_and_they_pause_when_refused() -> None:
    target = Answering()
    answered = await closed_loop(target, 3, iter([call()] * 1000), duration_s=0.2)
    assert target.most == 3
    refused = await closed_loop(Answering(status=429), 3, iter([call()] * 1000), duration_s=0.2)
    assert len(refused) < len(answered)


async def test_at_once_answers_in_the_order_of_calls() -> None:
    calls = [Call(policy, "say", 1) for policy in make_policies(5)]
    assert [o.call for o in await at_once(Answering(), calls)] == calls


async def _served(events: list[str], status: int = 200, headers: dict[str, str] | None = None) -> Outcome:
    async def handle(request: web.Request) -> web.StreamResponse:
        if status != 200:
            return web.json_response(
                {"error": {"code": "overloaded", "message": "full"}}, status=status, headers=headers
            )
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        for event in events:
            await response.write(event.encode())
        await response.write_eof()
        return response

    app = web.Application()
    app.router.add_post("/v1/completions", handle)
    async with TestServer(app) as server, make_session() as session:
        url = str(server.make_url("")).rstrip("/")
        return await complete(session, url, "m", call(), headers={}, expected_revision="sha256:a")


TOKENS = ['data: {"choices": [{"text": "a"}]}\n\n', 'data: {"choices": [{"text": "b"}]}\n\n']
USAGE = 'data: {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}\n\n'
DONE = "data: [DONE]\n\n"
RIGHT = {"x-openmint-revision": "sha256:a"}


async def test_a_whole_answer_of_the_right_revision_is_answered() -> None:
    found = await _served([": waiting\n\n", *TOKENS, USAGE, DONE], headers=RIGHT)
    assert found.is_answered and found.tokens == 2 and len(found.token_s) == 2


async def test_an_answer_of_another_revision_is_a_fault() -> None:
    found = await _served([*TOKENS, DONE], headers={"x-openmint-revision": "sha256:b"})
    assert found.is_fault and found.error.startswith("wrong revision")


async def test_a_stream_that_ends_early_is_a_fault() -> None:
    assert (await _served(TOKENS, headers=RIGHT)).is_fault


async def test_an_error_within_the_stream_is_told_by_its_code() -> None:
    found = await _served([": waiting\n\n", 'data: {"error": {"code": "load_timeout", "message": "late"}}\n\n'])
    assert found.is_refused and found.error == "load_timeout: late"


async def test_a_refusal_says_when_to_come_back() -> None:
    found = await _served([], status=429, headers={"retry-after": "3"})
    assert found.is_refused and found.retry_after_s == 3.0
