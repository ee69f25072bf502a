"""A core with a hand on its time and its engines: each verb feeds one event and keeps what came out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest

from openmint.engines.protocol import AttachResult, EngineState, Resident
from openmint_scheduler.core import LoaderScheduler
from openmint_scheduler.limits import Limits
from openmint_scheduler.messages import (
    AliasTurned,
    AnswerFailed,
    Attach,
    AttachDone,
    Command,
    CommandFailed,
    EngineBeat,
    EngineLooked,
    FetchState,
    InterestRenewed,
    LoadAsked,
    LoadKey,
    Remove,
    RemoveDone,
    Stage,
    StageDone,
    Tick,
    Wanted,
)


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


@dataclass
class Box:
    """What one engine really holds."""

    name: str
    pools: tuple[str, ...] = ("serve",)
    capacity: int = 4
    max_rank: int = 16
    boot: int = 1
    version: int = 0
    last_command: int = 0
    condition: str = "ready"
    residents: dict[str, tuple[str, int]] = field(default_factory=dict)
    staged: set[str] = field(default_factory=set)

    @property
    def boot_id(self) -> UUID:
        return UUID(int=self.boot)


class Bench:
    """The core and its engines. Commands stay in `todo` until a verb carries them out."""

    def __init__(self, limits: Limits | None = None, **strategies: str) -> None:
        self.core = LoaderScheduler(limits or Limits(settle_s=0.0), **strategies)
        self.now_s = 100.0
        self.boxes: dict[str, Box] = {}
        self.todo: list[Command] = []
        self.log: list[Command] = []

    def feed(self, event: Any) -> list[Command]:
        out = self.core.handle(event, self.now_s)
        self.log += out
        self.todo += [c for c in out if isinstance(c, Stage | Attach | Remove | FetchState)]
        return out

    def ask(
        self,
        number: int,
        waiter: str = "g1",
        load_class: str = "interactive",
        deadline_s: float = 60.0,
        pool: str = "serve",
        tenant: str = "acme",
        rank: int = 8,
        renew: bool = False,
    ) -> list[Command]:
        wanted = Wanted(LoadKey(pool, digest(number)), tenant, f"{tenant}/p{number}", rank, 5_000_000)
        kind = InterestRenewed if renew else LoadAsked
        return self.feed(kind(wanted, load_class, waiter, self.now_s + deadline_s))

    def engine(self, name: str, **facts: Any) -> Box:
        """An engine joins: it is heard, looked at, and ready."""
        box = self.meet(name, **facts)
        self.look(name)
        return box

    def meet(self, name: str, **facts: Any) -> Box:
        """An engine is heard for the first time."""
        self.boxes[name] = Box(name, **facts)
        self.beat(name)
        return self.boxes[name]

    def beat(self, name: str) -> list[Command]:
        box = self.boxes[name]
        return self.feed(
            EngineBeat(
                name,
                box.boot_id,
                box.pools,
                box.condition,
                box.capacity,
                box.max_rank,
                box.version,
                box.last_command,
                0,
                0,
            )
        )

    def state(self, name: str) -> EngineState:
        box = self.boxes[name]
        return EngineState(
            name, "base", digest(0), box.boot_id, box.pools, "http://e", box.condition, "", frozenset(), box.capacity,
            8, box.max_rank, 16, box.version, box.last_command, 0, 0,
            tuple(Resident(d, n, f, 5_000_000) for d, (n, f) in box.residents.items()), tuple(box.staged),
        )  # fmt: skip

    def look(self, name: str, asked_s: float | None = None) -> None:
        asked = [c for c in self.todo if isinstance(c, FetchState) and c.engine == name]
        self.todo = [c for c in self.todo if c not in asked]
        command = asked[0].command if asked else 0
        self.feed(EngineLooked(command, self.state(name), self.now_s if asked_s is None else asked_s))

    def take(self, kind: type, engine: str | None = None) -> list[Any]:
        """Take the commands of a kind out of what is to be done."""
        found = [c for c in self.todo if isinstance(c, kind) and (engine is None or c.engine == engine)]
        self.todo = [c for c in self.todo if c not in found]
        return found

    def carry_out(self, command: Any) -> list[Command]:
        """What a good engine does."""
        box = self.boxes[command.engine]
        match command:
            case Stage():
                box.staged.add(command.digest)
                return self.feed(StageDone(box.name, command.boot_id, command.command, command.digest))
            case Attach():
                results = []
                for request in command.requests:
                    name = f"{request.label}@{request.digest}#{command.command}"
                    box.residents[request.digest] = (name, 0)
                    results.append(AttachResult(request.digest, name, 6.0))
                box.version, box.last_command = box.version + 1, command.command
                assert len(box.residents) <= box.capacity
                return self.feed(AttachDone(box.name, command.boot_id, command.command, tuple(results)))
            case Remove():
                is_idle = box.residents[command.digest][1] == 0
                if is_idle:
                    del box.residents[command.digest]
                box.version, box.last_command = box.version + 1, command.command
                return self.feed(RemoveDone(box.name, command.boot_id, command.command, command.digest, is_idle))
            case FetchState():
                self.todo.append(command)
                self.look(box.name)
                return []
        raise AssertionError(command)

    def fail(self, command: Any, code: str, detail: str = "broken") -> list[Command]:
        return self.feed(CommandFailed(command.engine, command.boot_id, command.command, code, detail))

    def settle(self) -> None:
        """Carry out everything, until nothing is left to do."""
        while self.todo:
            self.carry_out(self.todo.pop(0))

    def wait(self, seconds: float, step_s: float = 0.5, beating: bool = True) -> list[Command]:
        """Let time pass, with ticks and heartbeats."""
        out: list[Command] = []
        end_s = self.now_s + seconds
        while self.now_s < end_s - 1e-9:
            self.now_s += step_s
            if beating:
                for name in self.boxes:
                    out += self.beat(name)
            out += self.feed(Tick())
        return out

    def move_alias(self, version: int, to: int, previous: int | None = None) -> list[Command]:
        def wanted(number: int) -> Wanted:
            return Wanted(LoadKey("serve", digest(number)), "acme", "acme/p")

        before = (wanted(previous),) if previous is not None else ()
        return self.feed(AliasTurned("acme/p@production", version, (wanted(to),), before))

    def answers(self) -> list[AnswerFailed]:
        return [c for c in self.log if isinstance(c, AnswerFailed)]

    def sent(self, kind: type) -> list[Any]:
        return [c for c in self.log if isinstance(c, kind)]

    def is_resident(self, number: int, pool: str = "serve") -> bool:
        return bool(self.core.state.ledger.serving(pool, digest(number)))


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def make_bench() -> Callable[..., Bench]:
    return Bench


@pytest.fixture
def digest_of() -> Callable[[int], str]:
    return digest
