"""Choosing among many engines looks at few; hot revisions get copies and lose them; streams get their time."""

from uuid import UUID

import pytest

from openmint.engines.protocol import AttachResult, EngineState, Resident
from openmint_scheduler.ledger import EngineEntry
from openmint_scheduler.limits import Limits
from openmint_scheduler.messages import Attach, AttachDone, EngineBeat, EngineLooked, Stage
from openmint_scheduler.pool import EXACT_UP_TO, LIKED, Pool


def entry_of(number):
    return EngineEntry(f"e{number}", UUID(int=number + 1), ("serve",), "ready", 32, 16, 0.0)


def pool_of(count):
    pool = Pool()
    for number in range(count):
        entry = entry_of(number)
        pool.put(entry)
        pool.judge(entry, is_open=True)
    return pool


@pytest.mark.parametrize("count", [3, EXACT_UP_TO, EXACT_UP_TO + 1, 300])
def test_a_revision_finds_few_engines_always_the_same(count, digest_of):
    pool = pool_of(count)
    found = [entry.engine for entry in pool.candidates(digest_of(7))]
    assert len(found) == len(set(found)) == (count if count <= EXACT_UP_TO else LIKED)
    assert found == [entry.engine for entry in pool_of(count).candidates(digest_of(7))]


def test_an_engine_that_leaves_moves_no_revision_but_its_own(digest_of):
    pool = pool_of(200)
    before = {number: pool.candidates(digest_of(number))[0].engine for number in range(300)}
    pool.drop("e17")
    after = {number: pool.candidates(digest_of(number))[0].engine for number in range(300)}
    assert {number for number in before if before[number] != after[number]} == {
        number for number in before if before[number] == "e17"
    }


def test_revisions_spread_over_all_engines(digest_of):
    pool = pool_of(100)
    firsts = [pool.candidates(digest_of(number))[0].engine for number in range(2000)]
    assert max(firsts.count(engine) for engine in set(firsts)) < 80
    assert len(set(firsts)) > 90


def test_closed_engines_are_not_found(digest_of):
    pool = pool_of(100)
    for entry in list(pool.engines.values())[:99]:
        pool.judge(entry, is_open=False)
    assert [entry.engine for entry in pool.candidates(digest_of(1))] == ["e99"]


def seen_busy(bench, name, busy, served):
    """The engine is looked at while so many sequences of each of its residents are in flight."""
    box = bench.boxes[name]
    residents = tuple(Resident(d, n, busy, 5_000_000, served) for d, (n, _) in box.residents.items())
    state = bench.state(name)
    bench.feed(EngineLooked(0, EngineState(**{f: getattr(state, f) for f in state.__slots__} | {
        "residents": residents, "running": busy,
    }), bench.now_s))  # fmt: skip


def keep_busy(bench, looks, served, **busy):
    """So many looks, a second apart, at engines with so many sequences of each resident in flight."""
    for look in looks:
        bench.wait(1.0)
        for name, sequences in busy.items():
            seen_busy(bench, name, sequences, served * look)
        bench.settle()


def test_a_hot_revision_gets_a_second_copy_where_there_is_time_and_no_third(bench, digest_of):
    bench.engine("e1")
    bench.ask(1)
    bench.settle()
    bench.engine("e2")
    keep_busy(bench, range(8), 20, e1=14)
    assert [e.engine for e in bench.core.state.ledger.serving("serve", digest_of(1))] == ["e1", "e2"]
    bench.engine("e3")
    keep_busy(bench, range(8, 14), 20, e1=6, e2=6)
    assert len(bench.core.state.ledger.serving("serve", digest_of(1))) == 2


def test_a_lukewarm_revision_gets_no_copy(bench, digest_of):
    bench.engine("e1")
    bench.ask(1)
    bench.settle()
    bench.engine("e2")
    keep_busy(bench, range(10), 5, e1=6)
    assert [e.engine for e in bench.core.state.ledger.serving("serve", digest_of(1))] == ["e1"]


def test_replication_can_be_switched_off(make_bench, digest_of):
    bench = make_bench(Limits(settle_s=0.0, replicates=False))
    bench.engine("e1")
    bench.ask(1)
    bench.settle()
    bench.engine("e2")
    keep_busy(bench, range(10), 20, e1=16)
    assert len(bench.core.state.ledger.serving("serve", digest_of(1))) == 1


def test_the_second_copy_of_what_has_cooled_down_is_evicted_first(bench, digest_of):
    bench.engine("e1", capacity=2)
    bench.ask(1)
    bench.settle()
    bench.engine("e2", capacity=2)
    keep_busy(bench, range(8), 50, e1=14)
    assert len(bench.core.state.ledger.serving("serve", digest_of(1))) == 2
    bench.wait(61.0)
    for _ in range(12):
        bench.wait(1.0)
        seen_busy(bench, "e1", 0, 400)
        seen_busy(bench, "e2", 0, 0)
    bench.ask(2)
    bench.settle()
    bench.ask(3)
    bench.settle()
    bench.ask(4)
    bench.settle()
    assert len(bench.core.state.ledger.serving("serve", digest_of(1))) == 1
    assert all(bench.is_resident(number) for number in (1, 2, 3, 4))


def test_attaches_leave_a_busy_engine_as_much_time_as_they_took(bench, digest_of):
    bench.engine("e1")
    busy = bench.boxes["e1"]
    bench.feed(EngineBeat("e1", busy.boot_id, busy.pools, "ready", 4, 16, 0, 0, 6, 0, 16))
    bench.ask(1)
    for stage in bench.take(Stage):
        bench.carry_out(stage)
    (attach,) = bench.take(Attach)
    bench.ask(2)
    for stage in bench.take(Stage):
        bench.carry_out(stage)
    bench.now_s += 0.2
    result = attach.requests[0]
    done = AttachResult(result.digest, "a#1", 200.0)
    busy.residents[result.digest] = ("a#1", 0)
    bench.feed(AttachDone("e1", busy.boot_id, attach.command, (done,)))
    assert not bench.take(Attach), "the streams have had no time yet"
    bench.wait(0.25, step_s=0.25)
    assert bench.take(Attach)
