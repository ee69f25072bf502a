"""Suspect engines and held revisions, event by event."""

from dataclasses import replace

import pytest

from openmint.engines.protocol import Examination
from openmint_scheduler.messages import (
    AnswerFailed,
    Attach,
    Condemn,
    EngineBeat,
    Examine,
    ExamineDone,
    Restart,
    RestartDone,
    Stage,
    StageDone,
)
from openmint_scheduler.suspects import HOLD_S, MAX_RESTARTS, MAX_UNLEARNT, RESTART_AGAIN_S


@pytest.fixture
def ward(bench, digest_of):
    return Ward(bench, digest_of)


class Ward:
    """A bench whose engines may be suspect."""

    def __init__(self, bench, digest_of) -> None:
        self.bench = bench
        self.digest_of = digest_of

    def beat(self, name, *suspects, condition="ready"):
        box = self.bench.boxes[name]
        box.condition = condition
        beat = EngineBeat(
            name, box.boot_id, box.pools, condition, box.capacity, box.max_rank, box.version, box.last_command, 0, 0
        )
        return self.bench.feed(replace(beat, suspects=tuple(self.digest_of(number) for number in suspects)))

    def reboot(self, name, *suspects):
        """The engine comes back empty, as a new boot, and is looked at."""
        box = self.bench.boxes[name]
        box.boot += 100
        box.residents, box.last_command = {}, 0
        out = self.beat(name, *suspects)
        self.bench.look(name)
        return out

    def examined(self, command, failures, probes=2, is_clean=True):
        found = Examination(command.request.digest, probes, failures, is_clean, "nan" if failures else "")
        return self.bench.feed(ExamineDone(command.engine, command.boot_id, command.command, found))

    def staged(self, command):
        self.bench.boxes[command.engine].staged.add(command.digest)
        return self.bench.feed(StageDone(command.engine, command.boot_id, command.command, command.digest))


def of(kind, commands):
    return [command for command in commands if isinstance(command, kind)]


def test_a_suspect_engine_is_restarted_once_and_asked_again_when_nothing_came_of_it(bench, ward):
    bench.engine("e1")
    (restart,) = of(Restart, ward.beat("e1", condition="suspect"))
    bench.feed(RestartDone("e1", restart.boot_id, restart.command))
    assert not of(Restart, ward.beat("e1", condition="suspect"))
    bench.now_s += RESTART_AGAIN_S + 1
    assert of(Restart, ward.beat("e1", condition="suspect"))


def test_what_waits_for_a_suspect_is_taken_back_from_where_it_was_going(bench, ward, digest_of):
    bench.engine("e1")
    bench.engine("e2")
    bench.ask(1)
    (stage,) = bench.take(Stage)
    other = "e2" if stage.engine == "e1" else "e1"
    ward.beat(other, 1, condition="suspect")
    ward.staged(stage)
    bench.wait(3.0, beating=False)
    assert not bench.take(Attach)
    assert digest_of(1) in bench.core.state.suspects.held
    assert bench.core.state.loads, "its waiter goes on waiting"


def test_a_fresh_engine_examines_before_it_takes_loads_and_an_innocent_one_loads_then(bench, ward):
    bench.engine("e1")
    ward.beat("e1", 1, condition="suspect")
    ward.reboot("e1", 1)
    bench.ask(2)
    assert not bench.take(Attach)
    (stage,) = [command for command in bench.take(Stage) if command.digest == ward.digest_of(1)]
    (examine,) = of(Examine, ward.staged(stage))
    bench.ask(1, waiter="g2")
    ward.examined(examine, failures=0)
    ward.beat("e1", 1)  # Told before the examination ended.
    bench.settle()
    assert bench.is_resident(1)
    assert bench.is_resident(2)
    assert not bench.sent(Condemn)


def test_what_fails_twice_alone_is_condemned_and_all_who_wait_are_told_why(bench, ward):
    bench.engine("e1")
    bench.ask(1)
    bench.settle()
    ward.beat("e1", 1, condition="suspect")
    bench.ask(1, waiter="g2")
    bench.todo.clear()
    ward.reboot("e1", 1)
    (stage,) = bench.take(Stage) or [None]
    out = ward.staged(stage) if stage else bench.log
    (examine,) = of(Examine, out)
    (condemned,) = of(Condemn, ward.examined(examine, failures=2))
    assert condemned.failures == 2
    assert [answer.code for answer in bench.answers()] == ["quarantined"]
    assert [answer.code for answer in of(AnswerFailed, bench.ask(1, waiter="g3"))] == ["quarantined"]
    assert bench.answers()[-1].retry_after_s is None


def test_one_failure_in_two_is_looked_at_again(bench, ward):
    bench.engine("e1", staged={ward.digest_of(1)})
    (examine,) = of(Examine, ward.beat("e1", 1))
    (again,) = of(Examine, ward.examined(examine, failures=1))
    assert not bench.sent(Condemn)
    assert of(Condemn, ward.examined(again, failures=1))


def test_an_engine_that_an_examination_leaves_unclean_is_restarted(bench, ward):
    bench.engine("e1", staged={ward.digest_of(1)})
    (examine,) = of(Examine, ward.beat("e1", 1))
    out = ward.examined(examine, failures=1, probes=1, is_clean=False)
    assert of(Restart, out)
    assert not of(Condemn, out)


def test_a_suspect_that_can_never_be_examined_is_let_go(bench, ward):
    bench.engine("e1", staged={ward.digest_of(1)})
    (examine,) = of(Examine, ward.beat("e1", 1))
    for _ in range(MAX_UNLEARNT - 1):
        ward.examined(examine, failures=0, probes=0)
        (examine,) = of(Examine, ward.beat("e1", 1))
    ward.examined(examine, failures=0, probes=0)
    assert not bench.core.state.suspects.held


def test_a_suspect_whose_engine_does_not_come_back_is_let_go(bench, ward):
    bench.engine("e1")
    bench.engine("e2")
    ward.beat("e1", 1, condition="suspect")
    del bench.boxes["e1"]
    bench.wait(HOLD_S - 10.0, step_s=2.0)
    assert bench.core.state.suspects.held
    bench.wait(20.0, step_s=2.0)
    assert not bench.core.state.suspects.held


def test_an_engine_that_is_suspect_again_and_again_is_left_out(bench, ward):
    bench.engine("e1")
    for _ in range(MAX_RESTARTS):
        assert of(Restart, ward.beat("e1", condition="suspect"))
        ward.reboot("e1")
        bench.now_s += 60.0
    assert not of(Restart, ward.beat("e1", condition="suspect"))
    assert not bench.core.state.ledger.engines["e1"].is_usable
