"""Any order of events that the world may bring, right or wrong: the core keeps its invariants, and settles afterwards.

Hypothesis chooses the events. `CheckedCore` looks at the invariants after each; here are those that need a memory of
the world: who was answered, what engines really hold, and that everybody is served once the world is well behaved.
"""

from dataclasses import dataclass, field
from uuid import UUID, uuid5

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.simulation.checked_core import UNADDRESSED, CheckedCore

from openmint.engines.protocol import AttachResult, EngineState, Examination, Resident
from openmint_scheduler.limits import Limits
from openmint_scheduler.messages import (
    AliasTurned,
    AnswerFailed,
    Attach,
    AttachDone,
    CommandFailed,
    EngineBeat,
    EngineGone,
    EngineLooked,
    Examine,
    ExamineDone,
    FetchState,
    InterestReleased,
    InterestRenewed,
    LoadAsked,
    LoadKey,
    Remove,
    RemoveDone,
    Restart,
    RestartDone,
    Stage,
    StageDone,
    Tick,
    Unstage,
    Wanted,
)

ENGINES = ("e1", "e2", "e3")
POOLS = {"e1": ("serve",), "e2": ("serve", "gate-fp32"), "e3": ("serve",)}
REVISIONS = 6
CAPACITY = 2
NAMESPACE = UUID(int=7)
LIMITS = Limits(max_waiting=4, settle_s=0.5, warm_s=5.0, max_staging=2, max_staged=3, evaluation_keep_s=3.0)
CODES = ("engine_failed", "store_unavailable", "bad_adapter")

engine_names = st.sampled_from(ENGINES)
revisions = st.integers(1, REVISIONS)
waiters = st.sampled_from(("g1", "g2"))
classes = st.sampled_from(("interactive", "rollout", "evaluation", "prefetch"))
pools = st.sampled_from(("serve", "serve", "gate-fp32"))


def digest(number):
    return f"sha256:{number:064x}"


@dataclass
class Box:
    """What an engine really is."""

    name: str
    boots: int = 1
    is_alive: bool = True
    condition: str = "ready"
    residents: dict[str, list] = field(default_factory=dict)
    staged: set[str] = field(default_factory=set)
    version: int = 0
    last_command: int = 0
    names: int = 0

    @property
    def boot_id(self):
        return uuid5(NAMESPACE, f"{self.name}-{self.boots}")


class World(RuleBasedStateMachine):
    """Engines, waiters and a bus that reorders, all at hypothesis's will."""

    def __init__(self):
        super().__init__()
        self.core = CheckedCore(LIMITS)
        self.now_s = 100.0
        self.boxes = {name: Box(name) for name in ENGINES}
        self.commands = []
        """On their way: an engine will do them, fail, or never answer."""
        self.waits = {}
        """(key, waiter) to (lease ends, deadline) of those who renewed and were not answered."""
        self.alias_version = 0

    @initialize()
    def engines_come_up(self):
        for box in self.boxes.values():
            self.tell(self.heartbeat(box))

    def tell(self, event):
        for command in self.core.handle(event, self.now_s):
            if isinstance(command, AnswerFailed):
                for held in [held for held in self.waits if held[0] == command.wanted.key]:
                    del self.waits[held]
            elif not isinstance(command, UNADDRESSED):
                self.commands.append(command)

    def heartbeat(self, box):
        running = sum(in_flight for _, in_flight, _ in box.residents.values())
        return EngineBeat(
            box.name,
            box.boot_id,
            POOLS[box.name],
            box.condition,
            CAPACITY,
            16,
            box.version,
            box.last_command,
            running,
            0,
            4,
        )

    def seen(self, box):
        residents = tuple(Resident(d, name, n, 5_000_000, served) for d, (name, n, served) in box.residents.items())
        return EngineState(
            box.name,
            "base",
            "",
            box.boot_id,
            POOLS[box.name],
            "http://e",
            box.condition,
            "",
            frozenset(),
            CAPACITY,
            2,
            16,
            4,
            box.version,
            box.last_command,
            sum(r.in_flight for r in residents),
            0,
            residents,
            tuple(sorted(box.staged)),
        )

    # Those who want.

    def wanted(self, number, pool):
        tenant = f"t{number % 2}"
        return Wanted(LoadKey(pool, digest(number)), tenant, f"{tenant}/p{number}", 8, 5_000_000)

    @rule(
        number=revisions,
        pool=pools,
        waiter=waiters,
        load_class=classes,
        patience_s=st.sampled_from((2.0, 10.0, 60.0)),
        is_renewal=st.booleans(),
    )
    def somebody_asks(self, number, pool, waiter, load_class, patience_s, is_renewal):
        wanted = self.wanted(number, pool)
        deadline_s = self.now_s + patience_s
        self.waits[wanted.key, waiter] = (min(self.now_s + LIMITS.lapse_s, deadline_s), deadline_s)
        kind = InterestRenewed if is_renewal else LoadAsked
        self.tell(kind(wanted, load_class, waiter, deadline_s))

    @rule(number=revisions, pool=pools, waiter=waiters)
    def somebody_is_done(self, number, pool, waiter):
        key = LoadKey(pool, digest(number))
        self.waits.pop((key, waiter), None)
        self.tell(InterestReleased(key, waiter))

    @rule(to=revisions, previous=revisions)
    def an_alias_moves(self, to, previous):
        self.alias_version += 1
        targets = [(self.wanted(number, "serve"),) for number in (to, previous)]
        self.tell(AliasTurned("t/alias", self.alias_version, *targets))

    @rule(name=engine_names, position=st.integers(0, 1), begins=st.booleans())
    def requests_begin_or_end(self, name, position, begins):
        held = list(self.boxes[name].residents.values())
        if position < len(held):
            held[position][1] = held[position][1] + 1 if begins else max(0, held[position][1] - 1)
            held[position][2] += begins

    # Time.

    @rule(seconds=st.sampled_from((0.0, 0.1, 0.6, 3.0)))
    def time_passes(self, seconds):
        self.now_s += seconds
        self.tell(Tick())

    @rule()
    def a_long_silence(self):
        self.now_s += LIMITS.lapse_s + 1.0
        self.tell(Tick())

    # Engines.

    @rule(name=engine_names)
    def an_engine_beats(self, name):
        if self.boxes[name].is_alive:
            self.tell(self.heartbeat(self.boxes[name]))

    @rule(name=engine_names, is_told=st.booleans())
    def an_engine_dies(self, name, is_told):
        box = self.boxes[name]
        if box.is_alive:
            box.is_alive, box.residents = False, {}
            if is_told:
                self.tell(EngineGone(name, box.boot_id, "died"))

    @rule(name=engine_names)
    def an_engine_starts_again(self, name):
        box = self.boxes[name]
        box.is_alive, box.residents, box.condition = True, {}, "ready"
        box.boots, box.version, box.last_command = box.boots + 1, 0, 0
        self.tell(self.heartbeat(box))

    @rule(name=engine_names, condition=st.sampled_from(("ready", "draining", "starting")))
    def an_engine_changes_its_condition(self, name, condition):
        if self.boxes[name].is_alive:
            self.boxes[name].condition = condition
            self.tell(self.heartbeat(self.boxes[name]))

    @rule(name=engine_names)
    def an_engine_forgets_what_is_idle(self, name):
        box = self.boxes[name]
        box.residents = {d: held for d, held in box.residents.items() if held[1]}
        box.version += 1

    @rule(name=engine_names)
    def a_machine_loses_its_copies(self, name):
        self.boxes[name].staged = set(self.boxes[name].residents)

    # Commands.

    @precondition(lambda self: self.commands)
    @rule(data=st.data(), how=st.sampled_from(("well", "well", "well", "fails", "lies", "nothing", "twice")))
    def a_command_ends(self, data, how):
        command = self.commands.pop(data.draw(st.integers(0, len(self.commands) - 1)))
        if how == "nothing":
            return  # It was never heard of again.
        if how == "fails":
            code = data.draw(st.sampled_from(CODES)) if isinstance(command, Stage) else "engine_failed"
            self.tell(CommandFailed(command.engine, command.boot_id, command.command, code, "broken"))
            return
        for answer in [self.carry_out(command, lies=how == "lies")] * (2 if how == "twice" else 1):
            if answer is not None:
                self.tell(answer)

    def carry_out(self, command, *, lies=False):
        """What the engine does, and what it says it did."""
        box = self.boxes[command.engine]
        where = (command.engine, command.boot_id, command.command)
        if not box.is_alive or box.boot_id != command.boot_id:
            return CommandFailed(*where, "engine_failed", "it is gone")
        if not isinstance(command, FetchState | Unstage | Stage):
            box.last_command = max(box.last_command, command.command)
        match command:
            case Stage():
                if not lies:
                    box.staged.add(command.digest)
                return StageDone(*where, command.digest)
            case Attach():
                results = [self.attach(box, request.digest, lies) for request in command.requests]
                return AttachDone(*where, tuple(results[: len(results) - lies]))
            case Remove():
                held = box.residents.get(command.digest)
                is_gone = held is None or not held[1]
                if is_gone and held is not None:
                    del box.residents[command.digest]
                    box.version += 1
                return RemoveDone(*where, command.digest, is_gone)
            case Unstage():
                if command.digest not in box.residents:
                    box.staged.discard(command.digest)
                return None
            case FetchState():
                asked_s = self.now_s - (0.2 if lies else 0.0)  # An older look than the core may think.
                return EngineLooked(command.command, self.seen(box), asked_s)
            case Restart():
                return RestartDone(*where)
            case Examine():
                return ExamineDone(*where, Examination(command.request.digest, 2, 0, True))
        raise AssertionError(command)

    def attach(self, box, name, lies):
        if name in box.residents:
            return AttachResult(name, box.residents[name][0])
        if name not in box.staged:
            return AttachResult(name, error_code="not_staged", error="no copy")
        if len(box.residents) >= CAPACITY:
            return AttachResult(name, error_code="full", error="full")
        box.names += 1
        label = f"{name}#{box.names}"
        if not lies:
            box.residents[name] = [label, 0, 0]
            box.version += 1
        return AttachResult(name, label, 6.0)

    # What must hold.

    @invariant()
    def nobody_is_forgotten(self):
        """Whoever holds a lease and got no answer has a live load, or an engine that is said to answer."""
        state = self.core.state
        for key, waiter in [held for held, (ends_s, _) in self.waits.items() if ends_s <= self.now_s]:
            del self.waits[key, waiter]
        for key, waiter in self.waits:
            assert key in state.loads or state.ledger.serving(*key), f"{waiter} waits for {key} in vain"

    @invariant()
    def memory_is_bounded(self):
        state = self.core.state
        assert len(state.loads) <= 2 * REVISIONS
        assert sum(len(entry.assigned) for entry in state.ledger.engines.values()) <= len(state.loads)

    def teardown(self):
        """From now on everything goes well: whoever asks is served within seconds, and nothing is left in between."""
        for box in self.boxes.values():
            box.is_alive, box.condition, box.boots = True, "ready", box.boots + 1
            box.residents, box.staged, box.version, box.last_command = {}, set(), 0, 0
        self.run_well(40.0)
        served = {}
        for number in range(1, 3):
            wanted = self.wanted(number, "serve")
            self.waits[wanted.key, "g9"] = (self.now_s + 60.0, self.now_s + 60.0)
            self.tell(LoadAsked(wanted, "interactive", "g9", self.now_s + 60.0))
            for _ in range(60):
                self.run_well(0.5)
                if self.core.state.ledger.serving(*wanted.key) or (wanted.key, "g9") not in self.waits:
                    break
                self.tell(InterestRenewed(wanted, "interactive", "g9", self.now_s + 60.0))
            served[number] = bool(self.core.state.ledger.serving(*wanted.key))
            self.tell(InterestReleased(wanted.key, "g9"))
            self.waits.pop((wanted.key, "g9"), None)
        assert all(served.values()), f"not served on a good day: {served}"
        self.run_well(130.0, step_s=2.0)
        state = self.core.state
        assert not state.loads, f"loads that nobody waits for: {state.loads}"
        assert not state.sent.keys() - {command.command for command in self.commands}, (
            "commands that are never answered"
        )
        for name, entry in state.ledger.engines.items():
            assert not (entry.attaching or entry.removing or entry.staging or entry.assigned)
            assert set(entry.residents) == set(self.boxes[name].residents), "the ledger is not what the engine holds"

    def run_well(self, seconds, step_s=0.5):
        ends_s = self.now_s + seconds
        while self.now_s < ends_s:
            self.now_s += step_s
            for box in self.boxes.values():
                self.tell(self.heartbeat(box))
            self.tell(Tick())
            while self.commands:
                answer = self.carry_out(self.commands.pop(0))
                if answer is not None:
                    self.tell(answer)


QUIET = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "phases": (Phase.explicit, Phase.generate),
    "database": None,
}


def test_the_core_keeps_its_invariants_whatever_comes():
    run_state_machine_as_test(
        World, settings=settings(max_examples=25, stateful_step_count=40, derandomize=True, **QUIET)
    )


@pytest.mark.slow
def test_the_core_keeps_its_invariants_whatever_comes_for_long():
    run_state_machine_as_test(World, settings=settings(max_examples=150, stateful_step_count=60, **QUIET))
