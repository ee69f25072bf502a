from uuid import UUID

import pytest

from openmint.engines.protocol import AttachResult
from openmint_scheduler.limits import Limits
from openmint_scheduler.messages import (
    Attach,
    AttachDone,
    EngineGone,
    EngineLooked,
    FetchState,
    Stage,
    StageDone,
    Unstage,
)
from openmint_scheduler.placement import PLACEMENTS


def test_an_engine_is_used_only_after_it_was_looked_at(bench):
    bench.meet("e1")
    bench.ask(1)
    assert bench.take(Stage) == []
    bench.look("e1")
    assert [stage.engine for stage in bench.take(Stage)] == ["e1"]


def test_another_boot_forgets_the_residents_and_places_waiting_loads_again(bench):
    box = bench.engine("e1")
    bench.ask(1)
    bench.settle()
    bench.ask(2)
    (stage,) = bench.take(Stage)
    box.boot, box.residents, box.staged, box.version = 2, {}, set(), 1
    bench.beat("e1")
    assert not bench.is_resident(1)
    bench.feed(StageDone("e1", stage.boot_id, stage.command, stage.digest))  # Of the former boot: changes nothing.
    bench.look("e1")
    staged_again = [stage.digest for stage in bench.sent(Stage) if stage.boot_id == UUID(int=2)]
    assert len(staged_again) == 2  # Revision 1 is still leased, so it comes back too.
    bench.settle()
    assert bench.is_resident(1) and bench.is_resident(2)


def test_what_was_hottest_is_brought_back_first(bench):
    box = bench.engine("e1", capacity=8)
    for number, waiters in ((1, 1), (2, 9), (3, 4)):
        for waiter in range(waiters):
            bench.ask(number, waiter=f"g{waiter}", deadline_s=30.0)
    bench.settle()
    box.boot, box.residents, box.staged = 2, {}, set()
    before = len(bench.log)
    bench.beat("e1")
    bench.look("e1")
    labels = [c.digest[-1] for c in bench.log[before:] if isinstance(c, Stage)]
    assert labels == ["2", "3", "1"]


def test_a_silent_engine_is_gone_after_five_seconds_and_its_loads_move(bench, digest_of):
    bench.engine("e1")
    bench.ask(1)
    bench.engine("e2")
    del bench.boxes["e1"]
    for _ in range(12):
        bench.wait(0.5)
        bench.ask(1, renew=True)
    assert "e1" not in bench.core.state.ledger.engines
    assert [stage.engine for stage in bench.sent(Stage)] == ["e1", "e2"]


def test_an_engine_that_says_it_left_is_gone_at_once(bench):
    box = bench.engine("e1")
    bench.ask(1)
    bench.settle()
    bench.feed(EngineGone("e1", UUID(int=99), "an older boot"))
    assert bench.is_resident(1)
    bench.feed(EngineGone("e1", box.boot_id, "stopped"))
    assert not bench.is_resident(1)


def test_a_draining_engine_gets_no_loads_and_what_is_leased_on_it_moves(bench, digest_of):
    first = bench.engine("e1")
    bench.ask(1)
    bench.settle()
    bench.engine("e2")
    first.condition = "draining"
    bench.beat("e1")
    bench.settle()
    assert [entry.engine for entry in bench.core.state.ledger.serving("serve", digest_of(1))] == ["e2"]


def test_a_stale_look_does_not_erase_what_was_just_attached(bench):
    box = bench.engine("e1")
    stale = bench.state("e1")
    asked_s = bench.now_s
    bench.now_s += 0.1
    bench.ask(1)
    bench.settle()
    bench.feed(EngineLooked(0, stale, asked_s))
    assert bench.is_resident(1)
    assert box.residents


def test_a_look_of_an_engine_that_had_not_applied_the_command_yet_erases_nothing(bench):
    bench.engine("e1")
    stale = bench.state("e1")
    bench.ask(1)
    bench.settle()
    bench.now_s += 1.0
    bench.feed(EngineLooked(0, stale, bench.now_s))  # Asked after the attach, but its last command is older.
    assert bench.is_resident(1)


def test_an_engine_that_lies_about_an_attach_is_found_out_by_the_next_look(bench):
    bench.engine("e1")
    bench.engine("e2")
    bench.ask(1)
    bench.settle()
    holder = next(name for name, each in bench.boxes.items() if each.residents)
    bench.boxes[holder].residents.clear()
    bench.boxes[holder].version += 1
    bench.now_s += 1.0
    bench.beat(holder)
    bench.look(holder)
    assert not bench.is_resident(1)
    bench.settle()
    assert bench.is_resident(1)  # It is still leased, so it was loaded again.


def test_a_new_list_version_in_a_heartbeat_asks_for_one_look(bench):
    box = bench.engine("e1")
    box.version += 1
    bench.beat("e1")
    bench.beat("e1")
    assert len(bench.take(FetchState)) == 1


def test_a_look_that_fails_is_asked_for_again_but_not_at_once(bench):
    box = bench.engine("e1")
    box.version += 1
    bench.beat("e1")
    (look,) = bench.take(FetchState)
    bench.fail(look, "engine_failed")
    bench.beat("e1")
    assert bench.take(FetchState) == []
    bench.wait(1.0)
    assert len(bench.take(FetchState)) == 1


def test_a_bad_adapter_fails_for_all_at_once_and_names_the_reason(bench):
    bench.engine("e1")
    bench.engine("e2")
    bench.ask(1)
    bench.ask(1, waiter="g2")
    (stage,) = bench.take(Stage)
    bench.fail(stage, "bad_adapter", "tensor lora_A of q_proj has 500 columns, not 576")
    (answer,) = bench.answers()
    assert answer.code == "bad_adapter"
    assert "500 columns" in answer.detail
    assert answer.retry_after_s is None
    assert not bench.core.state.loads
    bench.ask(1, waiter="g3")  # Remembered for a while.
    assert len(bench.answers()) == 2
    assert bench.take(Stage) == []


def test_an_engine_that_breaks_is_avoided_and_the_tries_are_bounded(make_bench):
    bench = make_bench(Limits(max_tries=4))
    for name in ("e1", "e2"):
        bench.engine(name)
    bench.ask(1, deadline_s=100.0)
    engines = []
    for _ in range(4):
        for _ in range(3):
            bench.wait(0.5)
            bench.ask(1, renew=True, deadline_s=100.0)
        for stage in bench.take(Stage):
            engines.append(stage.engine)
            bench.fail(stage, "engine_failed", "it did not answer")
    assert len(engines) == 4
    assert engines[0] != engines[1]
    (answer,) = bench.answers()
    assert answer.code == "load_failed"
    assert "it did not answer" in answer.detail


def test_a_store_that_is_away_is_nobodys_fault(bench):
    bench.engine("e1")
    bench.ask(1)
    (stage,) = bench.take(Stage)
    bench.fail(stage, "store_unavailable", "the store does not answer")
    bench.wait(1.0)
    assert [again.engine for again in bench.take(Stage)] == ["e1"]


def test_a_revision_that_kills_engines_does_not_walk_through_the_fleet(bench):
    for name in ("e1", "e2", "e3", "e4"):
        bench.engine(name)
    bench.ask(1, deadline_s=100.0)
    killed = []
    while not bench.answers() and len(killed) < 4:
        for stage in bench.take(Stage):
            bench.carry_out(stage)
        (attach,) = bench.take(Attach)
        box = bench.boxes[attach.engine]
        killed.append(attach.engine)
        box.boot, box.staged = box.boot + 1, set()
        bench.beat(attach.engine)
        bench.look(attach.engine)
    assert len(killed) == 2
    assert bench.answers()[0].code == "load_failed"


def test_a_refused_attach_is_tried_on_another_engine(bench):
    bench.engine("e1")
    bench.engine("e2")
    bench.ask(1)
    (stage,) = bench.take(Stage)
    bench.carry_out(stage)
    (attach,) = bench.take(Attach)
    result = AttachResult(attach.requests[0].digest, error_code="refused", error="out of memory")
    bench.feed(AttachDone(attach.engine, attach.boot_id, attach.command, (result,)))
    bench.wait(0.5)
    (again,) = bench.take(Stage)
    assert again.engine != attach.engine


def test_a_full_engine_is_looked_at_before_it_is_asked_again(bench):
    bench.engine("e1")
    bench.ask(1)
    bench.carry_out(bench.take(Stage)[0])
    (attach,) = bench.take(Attach)
    result = AttachResult(attach.requests[0].digest, error_code="full", error="4 of 4")
    bench.feed(AttachDone(attach.engine, attach.boot_id, attach.command, (result,)))
    assert len(bench.take(FetchState)) == 1


def test_a_rank_that_no_engine_takes_is_refused_at_once(bench):
    bench.engine("e1", max_rank=8)
    bench.ask(1, rank=64)
    (answer,) = bench.answers()
    assert "rank 64" in answer.detail


def test_pools_are_apart_and_an_engine_in_both_serves_both_with_one_load(bench):
    bench.engine("e1", pools=("serve", "gate-fp32"))
    bench.ask(1, pool="gate-fp32")
    bench.ask(1, pool="serve")
    bench.settle()
    assert len(bench.sent(Attach)) == 1
    assert bench.is_resident(1, "serve") and bench.is_resident(1, "gate-fp32")
    bench.ask(2, pool="elsewhere")
    assert bench.take(Stage) == []


def test_stages_are_limited_per_engine(make_bench):
    bench = make_bench(Limits(max_staging=3, settle_s=0.0))
    bench.engine("e1", capacity=16)
    for number in range(10):
        bench.ask(number)
    assert len(bench.take(Stage)) == 3


def test_an_alias_move_prefetches_and_rolling_back_needs_no_attach(bench):
    bench.engine("e1", capacity=4)
    bench.move_alias(1, to=1)
    bench.settle()
    bench.move_alias(2, to=2, previous=1)
    bench.settle()
    assert bench.is_resident(1) and bench.is_resident(2)
    for number in range(10, 16):  # Others press for room.
        bench.ask(number, deadline_s=30.0)
        bench.wait(9.0)
        bench.settle()
    attaches = len(bench.sent(Attach))
    bench.move_alias(3, to=1, previous=2)
    bench.settle()
    assert len(bench.sent(Attach)) == attaches
    assert bench.is_resident(1) and bench.is_resident(2)


def test_an_older_alias_move_changes_nothing(bench):
    bench.engine("e1")
    bench.move_alias(5, to=1)
    bench.settle()
    bench.move_alias(4, to=2, previous=1)
    assert bench.take(Stage) == []


@pytest.mark.parametrize("name", sorted(PLACEMENTS))
def test_every_placement_is_stable_when_another_engine_joins(name, make_bench, digest_of):
    few, many = make_bench(placement=name), make_bench(placement=name)
    for bench, engines in ((few, 4), (many, 5)):
        for number in range(engines):
            bench.engine(f"e{number}", capacity=64)
    moved = 0
    for number in range(40):
        places = []
        for bench in (few, many):
            bench.ask(number)
            bench.settle()
            (entry,) = bench.core.state.ledger.serving("serve", digest_of(number))
            places.append(entry.engine)
        moved += places[0] != places[1]
    assert moved < 25  # A fifth on average moves to the new engine; a scattering would move four fifths.


def test_a_staged_copy_draws_its_load(bench, digest_of):
    bench.engine("e1")
    box = bench.engine("e2")
    for number in range(1, 9):
        box.staged.add(digest_of(number))
    bench.now_s += 1.0
    bench.look("e2")
    bench.ask(3)
    assert bench.take(Stage) == []
    assert [attach.engine for attach in bench.take(Attach)] == ["e2"]


def test_staged_copies_beyond_the_limit_are_dropped(make_bench, digest_of):
    bench = make_bench(Limits(max_staged=4))
    box = bench.engine("e1")
    box.staged = {digest_of(number) for number in range(10)}
    bench.now_s += 1.0
    bench.look("e1")
    bench.wait(0.5)
    assert len(bench.sent(Unstage)) == 6


def test_commands_go_on_from_the_number_that_engines_have_applied(bench):
    bench.engine("e1", last_command=5000)
    bench.ask(1)
    (stage,) = bench.take(Stage)
    assert stage.command > 5000


def test_who_shared_a_batch_with_a_deadly_adapter_is_attached_alone_and_served(bench, digest_of):
    for name in ("e1", "e2"):
        bench.engine(name)
        bench.boxes[name].staged |= {digest_of(number) for number in (1, 2, 3)}
        bench.now_s += 1.0
        bench.look(name)
    bench.ask(9)  # Keeps the attach place of one engine until the others have gathered behind it.
    for number in (1, 2, 3):
        bench.ask(number, deadline_s=300.0)
    for _ in range(40):
        for number in (1, 2, 3):
            bench.ask(number, renew=True, deadline_s=300.0)
        while bench.todo:
            command = bench.todo.pop(0)
            if isinstance(command, Attach) and any(r.digest == digest_of(2) for r in command.requests):
                box = bench.boxes[command.engine]
                box.boot, box.residents = box.boot + 1, {}
                bench.fail(command, "engine_failed", "it died")
                bench.beat(box.name)
                bench.look(box.name)
            else:
                bench.carry_out(command)
        bench.wait(0.5)
    assert {answer.wanted.key.digest for answer in bench.answers()} == {digest_of(2)}
    assert bench.is_resident(1) and bench.is_resident(3)
    assert sum(box.boot - 1 for box in bench.boxes.values()) == 2


def test_a_store_that_stays_away_does_not_use_up_the_tries(bench):
    bench.engine("e1")
    bench.ask(1, deadline_s=60.0)
    tries = 0
    for _ in range(50):
        for stage in bench.take(Stage):
            tries += 1
            bench.fail(stage, "store_unavailable", "the store does not answer")
        bench.wait(0.5)
        bench.ask(1, renew=True, deadline_s=30.0)
    assert bench.answers() == []
    assert 6 <= tries <= 12  # The rests between them grow.
