from openmint_scheduler.limits import Limits
from openmint_scheduler.load_queue import Load, LoadQueue
from openmint_scheduler.messages import LoadKey, Wanted
from openmint_scheduler.ordering.strategies import FAIR


def load(number, load_class="interactive", tenant="acme", deadline_s=160.0, asked_s=100.0):
    wanted = Wanted(LoadKey("serve", f"sha256:{number:064x}"), tenant, f"{tenant}/p{number}")
    return Load(wanted, load_class, deadline_s, asked_s)


def drain(queue):
    order = []
    while (popped := queue.pop()) is not None:
        order.append(popped.wanted.label.split("/p")[1])
    return order


def test_classes_come_in_their_order():
    queue = LoadQueue(Limits(), FAIR)
    for number, name in enumerate(["prefetch", "evaluation", "rollout", "interactive"]):
        queue.push(load(number, name), 100.0)
    assert drain(queue) == ["3", "2", "1", "0"]


def test_inside_a_class_and_tenant_the_earliest_deadline_comes_first():
    queue = LoadQueue(Limits(), FAIR)
    for number, deadline_s in enumerate([130.0, 110.0, 120.0]):
        queue.push(load(number, deadline_s=deadline_s), 100.0)
    assert drain(queue) == ["1", "2", "0"]


def test_tenants_take_turns_by_their_weights_however_many_loads_one_brings():
    queue = LoadQueue(Limits(tenant_weights={"big": 2.0}), FAIR)
    for number in range(90):
        queue.push(load(number, tenant="noisy"), 100.0)
    for number in range(100, 110):
        queue.push(load(number, tenant="small"), 100.0)
    for number in range(200, 220):
        queue.push(load(number, tenant="big"), 100.0)
    first = [queue.pop().wanted.tenant for _ in range(40)]
    assert first.count("small") == 10
    assert first.count("noisy") == 10
    assert first.count("big") == 20


def test_a_tenant_that_was_away_has_no_credit():
    queue = LoadQueue(Limits(), FAIR)
    for number in range(50):
        queue.push(load(number, tenant="noisy"), 100.0)
    for _ in range(25):
        queue.pop()
    for number in range(100, 150):
        queue.push(load(number, tenant="late"), 100.0)
    assert [queue.pop().wanted.tenant for _ in range(20)].count("noisy") >= 9


def test_a_prefetch_rises_with_age():
    queue = LoadQueue(Limits(ageing_s=10.0), FAIR)
    queue.push(load(1, "prefetch", deadline_s=110.0), 100.0)
    queue.push(load(2, "interactive", asked_s=131.0, deadline_s=150.0), 131.0)
    queue.age(131.0)
    assert drain(queue) == ["1", "2"]


def test_a_load_that_is_pushed_again_moves_and_is_served_once():
    queue = LoadQueue(Limits(), FAIR)
    moved = load(1, "prefetch")
    queue.push(moved, 100.0)
    queue.push(load(2, "evaluation"), 100.0)
    moved.load_class = "interactive"
    queue.push(moved, 100.0)
    assert len(queue) == 2
    assert drain(queue) == ["1", "2"]


def test_past_the_bound_a_request_is_refused_at_once_with_a_time_to_come_back(make_bench):
    bench = make_bench(Limits(max_waiting=10, tenant_share=1.0))
    for number in range(10):
        bench.ask(number)
    bench.ask(99)
    (answer,) = bench.answers()
    assert (answer.code, answer.wanted.label) == ("overloaded", "acme/p99")
    assert answer.retry_after_s >= 1.0
    assert len(bench.core.state.queues["serve"]) == 10


def test_one_more_waiter_for_a_load_in_a_full_queue_is_welcome(make_bench):
    bench = make_bench(Limits(max_waiting=10, tenant_share=1.0))
    for number in range(10):
        bench.ask(number)
    bench.ask(3, waiter="g2")
    assert bench.answers() == []


def test_one_tenant_can_not_fill_the_queue(make_bench):
    bench = make_bench(Limits(max_waiting=10, tenant_share=0.5))
    for number in range(8):
        bench.ask(number, tenant="noisy")
    bench.ask(50, tenant="small")
    assert [answer.wanted.tenant for answer in bench.answers()] == ["noisy"] * 3
    assert bench.core.state.queues["serve"].waiting_of("small") == 1


def test_in_a_full_queue_a_prefetch_gives_way_to_a_request(make_bench):
    bench = make_bench(Limits(max_waiting=4, tenant_share=1.0))
    for number in range(4):
        bench.ask(number, load_class="prefetch")
    bench.ask(9)
    (answer,) = bench.answers()
    assert answer.wanted.label != "acme/p9"
    assert len(bench.core.state.queues["serve"]) == 4


def test_a_deadline_that_the_queue_can_not_meet_is_refused_at_once(make_bench):
    bench = make_bench(Limits(max_waiting=1000, tenant_share=1.0))
    for number in range(100):
        bench.ask(number)
    bench.ask(500, deadline_s=5.0)  # A hundred loads at 0.2 s are before it.
    assert [answer.code for answer in bench.answers()] == ["overloaded"]
