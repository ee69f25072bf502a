from openmint_scheduler.messages import Attach, InterestReleased, LoadKey, Noted, Remove, Stage


def test_two_hundred_requests_for_one_missing_policy_are_one_stage_and_one_attach(bench):
    bench.engine("e1")
    bench.engine("e2")
    for number in range(200):
        bench.ask(7, waiter=f"gateway-{number}")
    bench.settle()
    assert len(bench.sent(Stage)) == 1
    assert len(bench.sent(Attach)) == 1
    assert bench.is_resident(7)
    assert not bench.core.state.loads


def test_everything_that_is_staged_is_attached_in_one_gap(bench):
    bench.engine("e1", capacity=8)
    for number in range(1, 6):
        bench.ask(number)
    first, *others = bench.take(Stage)
    bench.carry_out(first)
    (attach,) = bench.take(Attach)
    for stage in others:
        bench.carry_out(stage)
    assert bench.take(Attach) == []  # One batch at a time.
    bench.carry_out(attach)
    (batch,) = bench.take(Attach)
    assert len(batch.requests) == 4


def test_a_load_that_nobody_renews_is_cancelled_after_three_missed_renewals(bench):
    bench.ask(1)
    bench.wait(6.0)
    assert bench.core.state.loads
    bench.wait(2.0)
    assert not bench.core.state.loads
    assert bench.answers() == []
    assert "load.cancelled" in [n.happening for n in bench.sent(Noted)]


def test_renewed_interest_keeps_a_load_waiting_until_its_deadline_and_then_answers(bench):
    for second in range(20):
        bench.ask(1, deadline_s=20.0 - second, renew=second > 0)
        bench.wait(1.0)
    bench.wait(1.0)
    (answer,) = bench.answers()
    assert answer.code == "load_timeout"
    assert answer.retry_after_s is not None


def test_renewed_interest_is_a_request_to_a_new_leader(make_bench):
    bench = make_bench()
    bench.engine("e1")
    bench.ask(1, renew=True)
    bench.settle()
    assert bench.is_resident(1)


def test_a_prefetch_that_gets_a_waiter_is_served_as_its_class(bench):
    bench.engine("e1", capacity=1)
    for number in range(10, 14):
        bench.ask(number, load_class="evaluation")
    bench.ask(1, load_class="prefetch")
    bench.ask(1, waiter="g2", load_class="interactive")
    queue = bench.core.state.queues["serve"]
    assert queue.in_order()[0].wanted.label == "acme/p1"


def test_a_cancelled_load_that_was_staged_leaves_its_copy_for_the_next_one(bench):
    bench.engine("e1")
    bench.ask(1)
    (stage,) = bench.take(Stage)
    bench.wait(8.0)
    bench.carry_out(stage)
    assert bench.take(Attach) == []
    bench.ask(1)
    assert bench.take(Stage) == []
    assert len(bench.take(Attach)) == 1


def test_a_request_for_a_resident_revision_only_takes_a_lease(bench):
    bench.engine("e1", capacity=1)
    bench.ask(1)
    bench.settle()
    bench.ask(2)
    bench.settle()
    assert bench.sent(Remove) == []  # Revision 1 is leased by its waiter.
    bench.wait(8.0)
    bench.ask(2)
    bench.settle()
    assert len(bench.sent(Remove)) == 1


def test_a_released_lease_makes_room_at_once(bench, digest_of):
    bench.engine("e1", capacity=1)
    bench.ask(1)
    bench.settle()
    bench.feed(InterestReleased(LoadKey("serve", digest_of(1)), "g1"))
    bench.ask(2)
    bench.settle()
    assert bench.is_resident(2) and not bench.is_resident(1)


def test_a_load_that_its_last_waiter_released_is_cancelled_and_one_of_two_is_not(bench, digest_of):
    bench.ask(1)
    bench.ask(1, waiter="g2")
    bench.feed(InterestReleased(LoadKey("serve", digest_of(1)), "g1"))
    assert bench.core.state.loads
    bench.feed(InterestReleased(LoadKey("serve", digest_of(1)), "g2"))
    assert not bench.core.state.loads
    assert bench.answers() == []
