from dataclasses import replace

from openmint_scheduler.eviction import EVICTIONS, Candidate
from openmint_scheduler.limits import Limits
from openmint_scheduler.messages import Attach, EngineLooked, FetchState, Noted, Remove, RemoveDone, Stage


def fill(bench, numbers, waiter="g1"):
    for number in numbers:
        bench.ask(number, waiter=waiter, deadline_s=5.0)
    bench.settle()


def let_leases_end(bench):
    bench.wait(9.0)
    bench.settle()


def test_room_is_made_by_removing_first_and_attaching_after(bench):
    bench.engine("e1", capacity=2)
    fill(bench, (1, 2))
    let_leases_end(bench)
    bench.ask(3)
    for stage in [c for c in bench.todo if isinstance(c, Stage)]:
        bench.todo.remove(stage)
        bench.carry_out(stage)
    (remove,) = bench.take(Remove)
    assert bench.take(Attach) == []
    bench.carry_out(remove)
    assert len(bench.take(Attach)) == 1


def test_nothing_in_flight_is_evicted(bench, digest_of):
    box = bench.engine("e1", capacity=2)
    fill(bench, (1, 2))
    let_leases_end(bench)
    for digest, (name, _) in list(box.residents.items()):
        box.residents[digest] = (name, 1)
    bench.now_s += 1.0
    bench.look("e1")
    bench.ask(3)
    bench.settle()
    assert bench.sent(Remove) == []
    assert not bench.is_resident(3)


def test_nothing_leased_is_evicted(bench):
    bench.engine("e1", capacity=2)
    fill(bench, (1, 2))
    bench.wait(4.0)
    for number in (1, 2):
        bench.ask(number, renew=True, deadline_s=60.0)
    bench.wait(3.0)
    bench.ask(3)
    bench.settle()
    assert bench.sent(Remove) == []


def test_a_new_resident_is_not_evicted_before_it_could_be_used(make_bench):
    bench = make_bench(Limits(settle_s=30.0))
    bench.engine("e1", capacity=1)
    fill(bench, (1,))
    let_leases_end(bench)
    bench.ask(2)
    bench.settle()
    assert bench.sent(Remove) == []
    for _ in range(30):
        bench.wait(1.0)
        bench.ask(2, renew=True)
    bench.settle()
    assert bench.is_resident(2)


def test_an_adapter_still_in_use_is_admitted_again_and_another_goes(bench, digest_of):
    box = bench.engine("e1", capacity=2)
    fill(bench, (1, 2))
    let_leases_end(bench)
    bench.ask(3)
    while not (removes := bench.take(Remove)):
        bench.carry_out(bench.todo.pop(0))
    (remove,) = removes
    assert len(bench.core.state.ledger.serving("serve", remove.digest)) == 0  # No request is sent there any more.
    bench.feed(RemoveDone("e1", remove.boot_id, remove.command, remove.digest, removed=False))
    assert len(bench.core.state.ledger.serving("serve", remove.digest)) == 1
    (other,) = bench.take(Remove)
    assert other.digest != remove.digest
    assert box.residents


def test_a_request_during_a_removal_waits_for_it_and_comes_back(bench):
    bench.engine("e1", capacity=1)
    fill(bench, (1,))
    let_leases_end(bench)
    bench.ask(2)
    while not (removes := bench.take(Remove)):
        bench.carry_out(bench.todo.pop(0))
    bench.ask(1)
    bench.carry_out(removes[0])
    bench.settle()
    assert bench.is_resident(2)
    let_leases_end(bench)
    bench.ask(1)
    bench.settle()
    assert bench.is_resident(1)


def test_warm_revisions_keep_at_most_their_share_of_an_engine(make_bench):
    bench = make_bench(Limits(settle_s=0.0, warm_share=0.5))
    bench.engine("e1", capacity=4)
    for version in range(1, 5):
        bench.move_alias(version, to=version)
        bench.wait(0.5)
        bench.settle()
    bench.wait(1.0)
    for number in (10, 11):
        bench.ask(number)
    bench.settle()
    assert bench.is_resident(10) and bench.is_resident(11)
    assert bench.is_resident(3) and bench.is_resident(4)  # The latest moves stay.


def test_a_staged_load_without_room_goes_to_an_engine_that_has_some(bench, digest_of):
    box = bench.engine("e1", capacity=1)
    fill(bench, (1,))
    let_leases_end(bench)
    bench.ask(2, deadline_s=60.0)
    for command in [c for c in bench.todo if isinstance(c, Stage)]:
        bench.todo.remove(command)
        box.residents[digest_of(1)] = (box.residents[digest_of(1)][0], 5)
        bench.now_s += 1.0
        bench.look("e1")
        bench.carry_out(command)
    bench.engine("e2")
    for _ in range(6):
        bench.wait(0.5)
        bench.ask(2, renew=True)
        bench.settle()
    assert [entry.engine for entry in bench.core.state.ledger.serving("serve", digest_of(2))] == ["e2"]


def test_nothing_is_evicted_on_the_word_of_an_old_look(bench, digest_of):
    box = bench.engine("e1", capacity=1)
    fill(bench, (1,))
    let_leases_end(bench)
    bench.settle()
    bench.now_s += 2.0
    name, _ = box.residents[digest_of(1)]
    box.residents[digest_of(1)] = (name, 3)  # In use since the last look, and nobody told.
    bench.ask(2)
    for stage in bench.take(Stage):
        bench.carry_out(stage)
    assert bench.sent(Remove) == []
    bench.settle()
    assert bench.sent(Remove) == []
    box.residents[digest_of(1)] = (name, 0)
    bench.wait(1.0)
    bench.settle()
    assert len(bench.sent(Remove)) == 1
    assert bench.is_resident(2)


CANDIDATES = [
    Candidate("sha256:a", 5_000_000, demands_per_min=9.0, last_wanted_s=50.0, is_staged=True),
    Candidate("sha256:b", 5_000_000, demands_per_min=1.0, last_wanted_s=90.0, is_staged=True),
    Candidate("sha256:c", 900_000_000, demands_per_min=1.0, last_wanted_s=10.0, is_staged=False),
]


def test_cheapest_to_lose_weighs_how_often_with_how_dear():
    assert min(CANDIDATES, key=EVICTIONS["cheapest_to_lose"]).digest == "sha256:b"


def test_a_copy_is_cheaper_to_lose_than_the_only_one():
    one, two = (replace(CANDIDATES[0], copies=copies) for copies in (1, 2))
    assert EVICTIONS["cheapest_to_lose"](two) < EVICTIONS["cheapest_to_lose"](one)


def test_longest_unused_looks_at_time_alone():
    assert min(CANDIDATES, key=EVICTIONS["longest_unused"]).digest == "sha256:c"


def test_what_happened_is_noted_for_the_log(bench):
    bench.engine("e1")
    bench.ask(1)
    bench.ask(1, waiter="g2")
    bench.settle()
    happenings = [note.happening for note in bench.sent(Noted)]
    assert {"engine.joined", "load.accepted", "load.coalesced", "adapter.attached"} <= set(happenings)


def test_what_only_an_evaluation_wanted_leaves_by_itself(bench):
    bench.engine("e1", capacity=4)
    bench.ask(1, waiter="evaluator", load_class="evaluation", deadline_s=5.0)
    bench.ask(2, waiter="g1", load_class="interactive", deadline_s=5.0)
    bench.settle()
    for _ in range(30):
        bench.wait(1.0)
        bench.settle()
    assert not bench.is_resident(1)
    assert bench.is_resident(2)


def test_what_an_evaluation_brought_stays_once_somebody_asks_for_it(bench):
    bench.engine("e1", capacity=4)
    bench.ask(1, waiter="evaluator", load_class="evaluation", deadline_s=5.0)
    bench.settle()
    bench.ask(1, waiter="g1", load_class="interactive", deadline_s=5.0)
    for _ in range(30):
        bench.wait(1.0)
        bench.settle()
    assert bench.is_resident(1)


def test_what_is_evaluated_leaves_no_sooner_than_its_lease(bench):
    bench.engine("e1", capacity=4)
    bench.ask(1, waiter="evaluator", load_class="evaluation", deadline_s=500.0)
    bench.settle()
    for _ in range(30):
        bench.wait(1.0)
        bench.ask(1, waiter="evaluator", load_class="evaluation", renew=True, deadline_s=500.0)
        bench.settle()
    assert bench.is_resident(1)


def test_what_was_evaluated_a_lot_is_not_brought_back_when_a_look_overtakes_its_removal(bench, digest_of):
    box = bench.engine("e1", capacity=4)
    bench.ask(1, waiter="evaluator", load_class="evaluation", deadline_s=5.0)
    bench.settle()
    state = bench.state("e1")
    used = tuple(replace(resident, served=400) for resident in state.residents)
    bench.feed(EngineLooked(0, replace(state, residents=used), bench.now_s))
    while not bench.sent(Remove):
        bench.wait(0.5)
        for look in bench.take(FetchState):
            bench.carry_out(look)
    (removal,) = bench.take(Remove)
    name = box.residents.pop(removal.digest)
    box.version, box.last_command = box.version + 1, removal.command
    bench.wait(0.5)
    for look in bench.take(FetchState):
        bench.carry_out(look)  # The engine lists it no more, and we have not heard of the removal's end.
    box.residents[removal.digest] = name
    bench.carry_out(removal)
    for _ in range(10):
        bench.wait(1.0)
        bench.settle()
    assert not bench.is_resident(1)
