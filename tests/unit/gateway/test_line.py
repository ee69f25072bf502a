"""Who goes next to an engine: turns of tenants and adapters, with plain values, no engine, no bus, no clock."""

from collections import Counter
from dataclasses import replace

import pytest
from tests.unit.gateway.lines import NO_VERDICT, ONE_BY_ONE, OneByOne, drain, queue, request

from openmint_gateway.forecast import Bounds
from openmint_gateway.line import Line, LineRules
from openmint_gateway.problems import QueueFull, WaitTooLong
from openmint_gateway.seats import Request


def test_a_hit_goes_straight_through_while_its_engine_has_room():
    line = Line(LineRules())
    asked = [request() for _ in range(18)]
    assert all(line.arrive(one, {"e": 16}, 0.0) for one in asked)
    assert not line.arrive(request(), {"e": 16}, 0.0)
    assert line.waiting == 1


def test_the_engine_with_the_least_work_is_chosen():
    line = Line(LineRules())
    costs = {"e1": 0.0, "e2": 0.0}
    for cost in (300, 10, 10, 200, 90):
        one = request(asked_tokens=cost)
        line.arrive(one, {"e1": 16, "e2": 16}, 0.0)
        assert costs[one.engine] == min(costs.values())
        costs[one.engine] += cost


def test_an_engine_that_told_nothing_counts_as_one_of_sixteen_sequences():
    line = Line(LineRules(margin=0))
    assert sum(line.arrive(request(), {"e": 0}, 0.0) for _ in range(17)) == 16


def test_a_newcomer_overtakes_nobody_who_could_go_there():
    line = Line(ONE_BY_ONE)
    large = request(sequences=4)
    small = request()
    assert line.arrive(request(sequences=2), {"e": 4}, 0.0)
    assert not line.arrive(large, {"e": 4}, 0.0)
    assert not line.arrive(small, {"e": 4}, 0.0)
    assert line.next_for("e", 0.0) is None


def test_tenants_take_turns_however_many_each_has_waiting():
    line = OneByOne()
    queue(line, *(request(tenant="loud") for _ in range(4)), *(request(tenant="quiet") for _ in range(2)))
    assert [one.tenant for one in drain(line)] == ["loud", "quiet", "loud", "quiet", "loud", "loud"]


def test_a_heavier_tenant_gets_its_weight():
    line = OneByOne(heavy=3.0)
    queue(line, *(request(tenant="heavy") for _ in range(12)), *(request(tenant="light") for _ in range(12)))
    first = Counter(one.tenant for one in drain(line)[:8])
    assert first == {"heavy": 6, "light": 2}


def test_turns_are_of_work_and_not_of_requests():
    line = OneByOne()
    queue(
        line,
        *(request(tenant="long", asked_tokens=100) for _ in range(9)),
        *(request(tenant="short") for _ in range(30)),
    )
    work: Counter[str] = Counter()
    for one in drain(line)[:22]:
        work[one.tenant] += int(one.cost)
    assert abs(work["long"] - work["short"]) <= 100


def test_a_tenant_that_wanted_nothing_for_long_has_saved_nothing():
    line = OneByOne()
    for _ in range(50):
        queue(line, request(tenant="busy"))
        line.step()
    queue(line, *(request(tenant="idle") for _ in range(6)), *(request(tenant="busy") for _ in range(6)))
    assert Counter(one.tenant for one in drain(line)[:6])["busy"] >= 2


def test_the_earliest_deadline_goes_first_within_a_tenant():
    line = OneByOne()
    late, soon = queue(line, request("a", wait_s=50), request("b", wait_s=20))
    assert drain(line) == [soon, late]


def test_without_deadline_order_the_first_come_goes_first():
    line = OneByOne(replace(ONE_BY_ONE, deadline_order=False))
    late, soon = queue(line, request("a", wait_s=50), request("b", wait_s=20))
    assert drain(line) == [late, soon]


def test_of_equal_deadlines_the_adapter_with_more_waiting_goes_first():
    line = OneByOne()
    queue(line, request("lone"), *(request("popular") for _ in range(4)))
    assert drain(line)[0].adapter == "popular"


def test_an_engine_at_its_limit_of_adapters_gets_more_of_those_it_runs():
    line = Line(LineRules(margin=0, coherent_adapters=2, adapter_turns=False, bounds=NO_VERDICT))
    running = [replace(request(adapter), asked_tokens=64) for adapter in ("a", "a", "b", "b")]
    for one in running:
        assert line.arrive(one, {"e": 4}, 0.0)
    queue(line, request("c", wait_s=10), request("b", wait_s=90), running=4)
    line.leave(running[0], 0.0)
    chosen = line.next_for("e", 0.0)
    assert chosen is not None
    assert chosen.adapter == "b"
    line.leave(running[1], 0.0)  # Now `a` is gone, and there is a place for another.
    chosen = line.next_for("e", 0.0)
    assert chosen is not None
    assert chosen.adapter == "c"


def test_without_a_limit_of_adapters_the_order_alone_counts():
    line = Line(LineRules(margin=0, coherent_adapters=0, bounds=NO_VERDICT))
    running = [request(adapter) for adapter in "aabb"]
    for one in running:
        line.arrive(one, {"e": 4}, 0.0)
    queue(line, request("c", wait_s=10), request("b", wait_s=90), running=4)
    line.leave(running[0], 0.0)
    chosen = line.next_for("e", 0.0)
    assert chosen is not None
    assert chosen.adapter == "c"


def test_the_base_model_takes_no_adapters_place():
    line = Line(LineRules(margin=0, coherent_adapters=1, bounds=NO_VERDICT))
    assert line.arrive(request("a"), {"e": 4}, 0.0)
    assert line.arrive(request(""), {"e": 4}, 0.0)
    assert not line.arrive(request("b"), {"e": 4}, 0.0)
    assert set(line.engines["e"].adapters) == {"a"}


@pytest.mark.parametrize("turns", [True, False])
def test_an_endless_stream_for_one_adapter_does_not_keep_another_from_its_turn(turns: bool):
    rules = LineRules(margin=0, coherent_adapters=1, adapter_turns=turns, bounds=NO_VERDICT)
    line = Line(rules)
    running = [request("popular") for _ in range(4)]
    for one in running:
        line.arrive(one, {"e": 4}, 0.0)
    other = request("rare", wait_s=40)
    queue(line, other, running=4)
    now_s = 0.0
    while other.state == "waiting" and now_s < 40:
        now_s += 1.0
        line.leave(running.pop(0), now_s, tokens=10)
        fresh = request("popular", at_s=now_s, wait_s=40)
        if line.arrive(fresh, {"e": 4}, now_s):
            running.append(fresh)
        while (one := line.next_for("e", now_s)) is not None:
            running.append(one)
        if not running:
            break
    # Its turn comes after a part of what it may wait; then the four of the other adapter have to end.
    assert (other.state == "running" and now_s <= 20 + 5) is turns


def test_bounds_refuse_at_once_and_say_when_to_come_again():
    line = OneByOne(LineRules(margin=0, bounds=Bounds(per_tenant=2, in_all=3, is_verdict_early=False)))
    queue(line, request(tenant="a"), request(tenant="a"))
    with pytest.raises(QueueFull) as caught:
        line.arrive(request(tenant="a"), {"e": 1}, 0.0)
    assert caught.value.retry_after_s
    queue(line, request(tenant="b"))
    with pytest.raises(QueueFull):
        line.arrive(request(tenant="c"), {"e": 1}, 0.0)
    assert line.waiting == 3


def test_a_request_that_waits_for_a_load_counts_as_waiting_but_takes_no_room():
    line = Line(LineRules(margin=0, bounds=Bounds(per_tenant=1)))
    cold = request("cold")
    assert not line.arrive(cold, {}, 0.0)
    assert (cold.state, line.waiting) == ("loading", 1)
    with pytest.raises(QueueFull):
        line.arrive(request("other"), {}, 0.0)
    assert line.arrive(request("warm"), {"e": 1}, 0.0)
    line.leave(cold, 0.0)
    assert line.waiting == 0


def test_a_loaded_request_goes_straight_or_into_its_queue():
    line = OneByOne()
    cold = request("cold")
    line.arrive(cold, {}, 0.0)
    assert not line.resident(cold, {"e": 1}, 1.0)
    assert cold.state == "waiting"
    assert drain(line) == [cold]


def test_one_that_was_sent_back_keeps_its_place_and_its_engine_is_not_asked_at_once():
    line = Line(ONE_BY_ONE)
    first, second = request(), request()
    assert line.arrive(first, {"e": 1}, 0.0)
    queue(line, second)
    assert not line.sent_back(first, {"e": 1}, 1.0, is_busy=True)
    assert line.next_for("e", 1.0) is None
    assert line.next_for("e", 1.2) is first


def test_a_tenant_at_its_share_of_an_engine_does_not_hold_up_another():
    line = Line(LineRules(margin=0, bounds=NO_VERDICT))
    assert line.arrive(request(tenant="loud"), {"e": 4}, 0.0)
    back = request(tenant="loud")
    assert line.arrive(back, {"e": 4}, 0.0)
    assert not line.sent_back(back, {"e": 4}, 0.0, is_busy=True)
    assert line.arrive(request(tenant="quiet"), {"e": 4}, 0.0)


def test_an_engine_that_lacks_the_adapter_is_avoided_and_another_taken():
    line = Line(ONE_BY_ONE)
    one = request()
    assert line.arrive(one, {"e": 1, "f": 1}, 0.0)
    first = one.engine
    assert line.sent_back(one, {"e": 1, "f": 1}, 0.0, is_busy=False)
    assert one.engine != first
    assert not line.sent_back(one, {"e": 1, "f": 1}, 0.0, is_busy=False)
    assert one.state == "loading"


def test_a_queued_request_whose_time_is_over_is_told_so():
    line = OneByOne()
    soon, later = queue(line, request(wait_s=5), request(wait_s=50))
    assert line.too_late(4.9) == []
    assert line.too_late(5.1) == [soon]
    assert drain(line) == [later]


def paced_line(seconds_each: float = 1.0) -> tuple[Line, Request]:
    """A line whose engine was seen to end one request of cost 10 in so many seconds, over and over."""
    line = Line(LineRules(margin=0))
    running = request(wait_s=1e6)
    line.arrive(running, {"e": 1}, 0.0)
    for number in range(1, 41):
        line.arrive(request(wait_s=1e6), {"e": 1}, seconds_each * (number - 0.5))
        line.leave(running, seconds_each * number, tokens=10)
        following = line.next_for("e", seconds_each * number)
        assert following is not None
        running = following
    return line, running


def test_an_expected_wait_is_the_work_ahead_over_the_measured_pace():
    line, _ = paced_line()
    now_s = 40.0
    for _ in range(9):
        line.arrive(request(tenant="acme", wait_s=1e6), {"e": 1}, now_s)
    assert line.forecast.expected_wait_s(request(cost=10), ["e"]) == pytest.approx(10, rel=0.2)
    assert line.forecast.expected_wait_s(request(tenant="other", cost=10), ["e"]) == pytest.approx(2, rel=0.2)


def test_what_would_wait_too_long_is_refused_where_the_flood_comes_from():
    line, _ = paced_line()
    refused = 0
    for _ in range(50):
        try:
            line.arrive(request(tenant="flood", wait_s=20.0, at_s=40.0), {"e": 1}, 40.0)
        except WaitTooLong as error:
            refused += 1
            assert error.retry_after_s == pytest.approx(8, rel=0.25)
    assert refused == pytest.approx(42, abs=2)
    assert not line.arrive(request(tenant="quiet", wait_s=20.0, at_s=40.0), {"e": 1}, 40.0)


def test_without_early_verdict_nothing_but_the_bounds_refuses():
    line, _ = paced_line()
    line.forecast._bounds = NO_VERDICT
    for _ in range(50):
        assert not line.arrive(request(tenant="flood", wait_s=20.0, at_s=40.0), {"e": 1}, 40.0)


def test_those_who_came_too_late_make_the_next_verdicts_more_careful():
    line, _ = paced_line()
    queue(line, *(request(wait_s=15.0, at_s=40.0) for _ in range(4)))
    before_s = line.forecast.expected_wait_s(request(cost=10), ["e"])
    for late in line.too_late(56.0):
        assert late.state == "gone"
    queue(line, *(request(wait_s=90.0, at_s=56.0) for _ in range(4)))
    assert line.forecast.expected_wait_s(request(cost=10), ["e"]) > before_s * 1.3


def test_an_engine_that_left_takes_its_pace_with_it():
    line, _ = paced_line()
    queue(line, *(request(wait_s=1e6, at_s=40.0) for _ in range(9)))
    line.see({"e": 1, "f": 1})
    for adapter in list(line.queues.adapters):
        line.queues.place(adapter, ["e", "f"], 40.0)
    both_s = line.forecast.expected_wait_s(request(cost=10), ["e", "f"])
    line.see({"f": 1})
    for adapter in list(line.queues.adapters):
        line.queues.place(adapter, ["f"], 40.0)
    assert line.forecast.expected_wait_s(request(cost=10), ["f"]) == pytest.approx(2 * both_s, rel=0.1)


def test_what_a_tenants_answers_were_like_says_what_the_next_will_cost():
    line = OneByOne()
    unsaid = request(tenant="brief", asked_tokens=None)
    line.arrive(unsaid, {"e": 1}, 0.0)
    assert unsaid.cost == 256
    assert line.step() is unsaid
    line.leave(unsaid, 1.0, tokens=8)
    for asked, cost in ((None, 8), (4096, 16), (5, 5)):
        following = request(tenant="brief", asked_tokens=asked)
        line.arrive(following, {"e": 1}, 1.0)
        assert following.cost == cost
        line.leave(following, 1.0)


def test_a_tenant_is_charged_for_what_it_got_and_not_for_what_it_asked_for():
    line = OneByOne()
    queue(line, *(request(tenant="modest", asked_tokens=10) for _ in range(20)))
    queue(line, *(request(tenant="wordy", asked_tokens=10) for _ in range(20)))
    work: Counter[str] = Counter()
    for _ in range(15):
        line.leave(line.running, 0.0, tokens=2 if line.running.tenant == "modest" else 10)
        following = line.next_for("e", 0.0)
        assert following is not None
        line.running = following
        work[following.tenant] += 1
    assert work["modest"] >= 3 * work["wordy"]


@pytest.mark.parametrize(("tokens", "at_once"), [(1, 4), (64, 2)])
def test_an_engine_with_little_to_do_gets_the_adapters_of_its_next_batch_too(tokens: int, at_once: int):
    line = Line(LineRules(margin=0, coherent_adapters=2, bounds=NO_VERDICT))
    waves = [replace(request(adapter), asked_tokens=tokens) for adapter in "abcdefgh"]
    assert sum(line.arrive(one, {"e": 16}, 0.0) for one in waves) == at_once
