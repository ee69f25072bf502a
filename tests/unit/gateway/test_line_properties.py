"""What holds of a line whatever happens in whatever order."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.gateway.lines import OneByOne, queue, request

from openmint_gateway.forecast import Bounds
from openmint_gateway.line import Line, LineRules
from openmint_gateway.problems import QueueFull, WaitTooLong
from openmint_gateway.seats import Request

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["arrive", "arrive", "arrive", "cold", "loaded", "end", "end", "hang_up", "busy", "absent", "time"]
        ),
        st.integers(0, 5),
        st.integers(0, 3),
        st.integers(1, 3),
    ),
    max_size=120,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, limit=st.integers(0, 3), turns=st.booleans(), by_deadline=st.booleans())
def test_no_request_is_lost_rooms_and_queues_stay_bounded_and_no_room_is_idle(steps, limit, turns, by_deadline):
    bounds = Bounds(per_tenant=12, in_all=30)
    rules = LineRules(margin=1, coherent_adapters=limit, adapter_turns=turns, deadline_order=by_deadline, bounds=bounds)
    line = Line(rules)
    engines = {"e": 2, "f": 3}
    line.see(engines)
    places = {f"a{number}": engines if number < 3 else {"f": 3} for number in range(6)}
    live: list[Request] = []
    now_s = 0.0
    for kind, number, tenant, size in steps:
        now_s += 0.25
        adapter = f"a{number}"
        fresh = request(adapter, f"t{tenant}", now_s, wait_s=5.0 + number, sequences=size)
        states = {"end": "running", "busy": "running", "absent": "running", "loaded": "loading"}
        chosen = [one for one in live if one.state == states.get(kind, one.state)]
        one = chosen[number % len(chosen)] if chosen else None
        match kind:
            case "arrive" | "cold":
                try:
                    line.arrive(fresh, places[adapter] if kind == "arrive" else {}, now_s)
                    live.append(fresh)
                except (QueueFull, WaitTooLong) as error:
                    assert error.retry_after_s is not None
                    assert error.retry_after_s >= 1
            case "loaded" if one:
                line.resident(one, places[one.adapter], now_s)
            case "end" | "hang_up" if one:
                line.leave(one, now_s, tokens=size if kind == "end" else None)
            case "busy" | "absent" if one:
                line.sent_back(one, places[one.adapter], now_s, is_busy=kind == "busy")
            case "time":
                now_s += size
            case _:
                pass
        for late in line.too_late(now_s):
            assert late.deadline_s <= now_s + line.forecast.start_s
        for engine in engines:
            while line.next_for(engine, now_s) is not None:
                pass
        live = [one for one in live if one.state != "gone"]
        _check(line, live, now_s)


def _check(line: Line, live: list[Request], now_s: float) -> None:
    states = Counter(one.state for one in live)
    assert set(states) <= {"loading", "waiting", "running"}
    assert line.queues.queued == states["waiting"]
    assert line.forecast.loading == states["loading"]
    assert line.waiting <= 30 + 7  # What was sent back finds its place again, beyond the bound on newcomers.
    for name, seat in line.engines.items():
        here = [one for one in live if one.state == "running" and one.engine == name]
        assert seat.sequences == sum(one.room_taken for one in here) <= seat.limit
        assert set(seat.adapters) == {one.adapter for one in here}
        if line.rules.coherent_adapters:
            assert len(seat.adapters) <= 2 * line.rules.coherent_adapters
        elif not seat.sequences and not seat.pauses:
            queued = [one for one in live if one.state == "waiting" and name not in one.avoided]
            could = [one for one in queued if name in line.queues.adapters[one.adapter].engines]
            assert not could, "an idle engine, and somebody waits for it"


@settings(max_examples=60, deadline=None)
@given(
    arrivals=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=60, max_size=160),
    limit=st.sampled_from([0, 1, 2]),
)
@pytest.mark.slow
def test_no_tenant_that_waits_falls_further_behind_than_the_slack(arrivals, limit):
    """Work given to tenants that wait all the time differs by a bounded amount, whatever the adapters."""
    line = OneByOne(LineRules(margin=0, coherent_adapters=limit, bounds=Bounds(10_000, 10_000, is_verdict_early=False)))
    for tenant, adapter in arrivals:
        queue(line, request(f"t{tenant}a{adapter}", f"t{tenant}", wait_s=1e6))
    waiting = Counter(f"t{tenant}" for tenant, _ in arrivals)
    given_to: Counter[str] = Counter()
    while (running := line.step()) is not None:
        given_to[running.tenant] += 1
        waiting[running.tenant] -= 1
        if min(waiting.values()) > 0 and len(waiting) > 1:
            assert max(given_to.values()) - min(given_to[tenant] for tenant in waiting) <= 32 / len(waiting) + 2
    assert sum(given_to.values()) == len(arrivals)
