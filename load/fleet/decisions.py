"""What one decision costs the core: a load request in, its commands out, and back in how they went.

A thousand engines, all full, answer at once, so that nothing but `LoaderScheduler.handle` is timed. Each decision asks
for a revision that is nowhere resident, drawn evenly from the catalogue (the hardest draw: nearly each one is new).
"""

import random
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from uuid import NAMESPACE_URL, UUID, uuid5

from openmint.engines.protocol import AttachResult, EngineState, Resident
from openmint_scheduler.core import LoaderScheduler
from openmint_scheduler.messages import (
    Attach,
    AttachDone,
    Command,
    EngineBeat,
    EngineLooked,
    FetchState,
    Incoming,
    InterestReleased,
    LoadAsked,
    LoadKey,
    Remove,
    RemoveDone,
    Stage,
    StageDone,
    Tick,
    Unstage,
    Wanted,
)

DECISIONS_PER_S = 500.0
"""Of simulated time: what 10,000 requests a second leave at a hit rate of 95 %."""

COUNTED = ("LoadAsked", "StageDone", "AttachDone", "RemoveDone", "InterestReleased", "CommandFailed")
"""The events of a decision: the request, how each of its commands ended, and the waiter's word that it has it."""

TENANTS = 50
ADAPTER_BYTES = 5_000_000


@dataclass(slots=True)
class InstantEngine:
    """An engine that has done everything at once."""

    name: str
    boot_id: UUID
    capacity: int
    residents: dict[str, str] = field(default_factory=dict[str, str])
    staged: dict[str, None] = field(default_factory=dict[str, None])
    list_version: int = 0
    last_command: int = 0
    names: int = 0


@dataclass(slots=True)
class DecisionCost:
    """CPU of a number of decisions. `decided` is what COUNTED took, `asked` LoadAsked alone, `all` with heartbeats,
    looks and ticks at the pace of DECISIONS_PER_S."""

    decisions: int
    loaded: int
    """Adapters attached meanwhile: as many, or the engines could not follow and the cost is not that of a load."""
    asked_us: float
    decided_us: float
    all_us: float


class DecisionBench:
    """One core with its engines; `fill` it, then `run` it as often as wanted."""

    def __init__(self, engines: int, capacity: int, policies: int, seed: int) -> None:
        self.core = LoaderScheduler()
        self._random = random.Random(seed)
        self._policies = policies
        self._engines = {
            name: InstantEngine(name, uuid5(NAMESPACE_URL, name), capacity)
            for name in (f"e{number:04d}" for number in range(engines))
        }
        self._in_turn = deque(self._engines.values())
        self._resident: Counter[str] = Counter()
        self._now_s = 0.0
        self._beats_due = 0.0
        self._next_tick_s = 0.0
        self._asked = 0
        self._loaded = 0
        self._cpu_ns: Counter[str] = Counter()
        for engine in self._engines.values():
            self._tell(self._beat(engine))

    def fill(self) -> None:
        """Decide until every engine is full, and on until what it knows is as it will be."""
        places = sum(engine.capacity for engine in self._engines.values())
        while len(self._resident) < 0.99 * places:
            self._decide()
        for _ in range(places // 4):
            self._decide()

    def run(self, decisions: int) -> DecisionCost:
        """Time so many decisions."""
        self._cpu_ns.clear()
        loaded = -self._loaded
        for _ in range(decisions):
            self._decide()
        total = self._cpu_ns.total()
        decided = sum(self._cpu_ns[kind] for kind in COUNTED)
        scale = 1e3 * decisions
        loaded += self._loaded
        return DecisionCost(decisions, loaded, self._cpu_ns["LoadAsked"] / scale, decided / scale, total / scale)

    def _decide(self) -> None:
        self._now_s += 1.0 / DECISIONS_PER_S
        self._beats_due += len(self._engines) / DECISIONS_PER_S
        while self._beats_due >= 1.0:
            self._beats_due -= 1.0
            self._in_turn.rotate(-1)
            self._tell(self._beat(self._in_turn[0]))
        if self._now_s >= self._next_tick_s:
            self._next_tick_s = self._now_s + 0.25
            self._tell(Tick())
        digest = self._absent()
        self._asked += 1
        policy = self._asked
        tenant = f"t{policy % TENANTS}"
        wanted = Wanted(LoadKey("serve", digest), tenant, f"{tenant}/p", 8, ADAPTER_BYTES)
        self._tell(LoadAsked(wanted, "interactive", "g0", self._now_s + 30.0))
        if digest in self._resident:
            self._tell(InterestReleased(wanted.key, "g0"))

    def _absent(self) -> str:
        while True:
            digest = f"sha256:{self._random.randrange(self._policies):064x}"
            if digest not in self._resident:
                return digest

    def _tell(self, event: Incoming) -> None:
        events: deque[Incoming] = deque([event])
        while events:
            event = events.popleft()
            began_ns = time.thread_time_ns()
            commands = self.core.handle(event, self._now_s)
            self._cpu_ns[type(event).__name__] += time.thread_time_ns() - began_ns
            for command in commands:
                answer = self._carry_out(command)
                if answer is not None:
                    events.append(answer)

    def _carry_out(self, command: Command) -> Incoming | None:
        match command:
            case Stage():
                self._engines[command.engine].staged[command.digest] = None
                return StageDone(command.engine, command.boot_id, command.command, command.digest)
            case Attach():
                engine = self._engines[command.engine]
                results = tuple(self._attach(engine, request.digest) for request in command.requests)
                engine.last_command = command.command
                return AttachDone(command.engine, command.boot_id, command.command, results)
            case Remove():
                engine = self._engines[command.engine]
                engine.last_command = command.command
                self._take_off(engine, command.digest)
                return RemoveDone(command.engine, command.boot_id, command.command, command.digest, True)
            case Unstage():
                self._engines[command.engine].staged.pop(command.digest, None)
            case FetchState():
                return EngineLooked(command.command, self._state(self._engines[command.engine]), self._now_s)
            case _:
                pass
        return None

    def _attach(self, engine: InstantEngine, digest: str) -> AttachResult:
        if digest not in engine.residents:
            if len(engine.residents) >= engine.capacity:
                return AttachResult(digest, error_code="full", error="full")
            engine.names += 1
            engine.residents[digest] = f"{digest}#{engine.names}"
            engine.list_version += 1
            self._resident[digest] += 1
            self._loaded += 1
        return AttachResult(digest, engine.residents[digest], 6.0)

    def _take_off(self, engine: InstantEngine, digest: str) -> None:
        if engine.residents.pop(digest, None) is not None:
            engine.list_version += 1
            self._resident[digest] -= 1
            if not self._resident[digest]:
                del self._resident[digest]

    def _state(self, engine: InstantEngine) -> EngineState:
        return EngineState(
            engine=engine.name, base="base", base_digest="", boot_id=engine.boot_id, pools=("serve",), url="",
            condition="ready", build="instant", capabilities=frozenset(), capacity=engine.capacity, slots=16,
            max_rank=64, max_running=16, list_version=engine.list_version, last_command=engine.last_command,
            running=8, waiting=0,
            residents=tuple(Resident(d, name, 0, ADAPTER_BYTES, 1) for d, name in engine.residents.items()),
            staged=tuple(engine.staged),
        )  # fmt: skip

    def _beat(self, engine: InstantEngine) -> EngineBeat:
        return EngineBeat(
            engine.name, engine.boot_id, ("serve",), "ready", engine.capacity, 64, engine.list_version,
            engine.last_command, 8, 0, 16,
        )  # fmt: skip
