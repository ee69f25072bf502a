"""Our way: gateways that know residency from the feed, and the scheduler's own core, which decides every load.

Gateways count only their own outstanding work; the core knows engines by heartbeats (1 s) and the looks it asks for.
Messages take BUS_S. Left out: leadership, the bus losing messages, verdicts `busy`.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from load.fleet.engine import FleetEngine, Request
from load.fleet.night import Night
from openmint.engines.protocol import AttachResult, EngineState, Resident
from openmint_scheduler.core import LoaderScheduler
from openmint_scheduler.messages import (
    AnswerFailed,
    Attach,
    AttachDone,
    CommandFailed,
    EngineBeat,
    EngineGone,
    EngineLooked,
    FetchState,
    Incoming,
    InterestReleased,
    InterestRenewed,
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

BUS_S = 0.001
GATEWAYS = 4
DEADLINE_S = 30.0
RENEW_S = 2.0
BEAT_S = 1.0
TICK_S = 0.25
AGAIN_S = 0.1
"""Before a gateway chooses anew for a request that an engine sent back."""

NOTICE_S = 0.5
"""Before a host tells that its engine has died; every second death is told, the others show by silence."""

TENANTS = 50
POOL = "serve"
ADAPTER_BYTES = 5_000_000

EngineCommand = Stage | Attach | Remove | FetchState
"""Commands whose end is told."""


@dataclass(slots=True)
class CoreCost:
    """CPU of the core's `handle`, by kind of event."""

    calls: Counter[str] = field(default_factory=Counter[str])
    cpu_ns: Counter[str] = field(default_factory=Counter[str])


@dataclass(slots=True)
class Gateway:
    """One gateway process: its own work on each engine, and who waits in it for which revision."""

    number: int
    work: dict[str, int] = field(default_factory=dict[str, int])
    waiting: dict[str, list[Request]] = field(default_factory=dict[str, list[Request]])


class Scheduled:
    """See the module."""

    def __init__(self, core: LoaderScheduler) -> None:
        self.core = core
        self.cost = CoreCost()
        self.refusals: Counter[str] = Counter()
        self._gateways = [Gateway(number) for number in range(GATEWAYS)]
        self._engines: dict[str, FleetEngine] = {}
        self._where: dict[str, list[str]] = {}
        self._commands: dict[str, dict[int, EngineCommand]] = {}
        self._applied: dict[str, int] = {}
        self._arrived = 0
        self._deaths = 0

    def begin(self, night: Night) -> None:
        """Start hearts and ticks."""
        self._night = night
        self._timeline = night.timeline
        self._tally = night.tally
        self._engines = {engine.name: engine for engine in night.engines}
        alive = [engine for engine in night.engines if engine.is_alive]
        for number, engine in enumerate(alive):
            self.joined(engine, BEAT_S * number / len(alive))
        self._tick()

    def ask(self, request: Request) -> None:
        """One request at one gateway."""
        if not request.lost:
            self._arrived += 1
            request.gateway = self._arrived % GATEWAYS
        gateway = self._gateways[request.gateway]
        is_hit = self._send(gateway, request)
        if not request.lost:
            self._tally.asked(is_hit=is_hit)
        if not is_hit:
            request.was_cold = True
            self._wait(gateway, request)

    def ended(self, engine: FleetEngine, request: Request) -> None:
        """The gateway's work on the engine is less."""
        self._gateways[request.gateway].work[engine.name] -= 1

    def joined(self, engine: FleetEngine, first_beat_s: float = 0.0) -> None:
        """Its heart begins to beat."""
        self._commands[engine.name] = {}
        self._applied[engine.name] = 0
        self._timeline.after(first_beat_s, self._beat, engine, engine.boot_id)

    def died(self, engine: FleetEngine) -> None:
        """Commands to it fail; gateways notice at once that nobody listens; the core is told, or hears nothing."""
        for digest in engine.adapters:
            self._leave(digest, engine.name)
        for gateway in self._gateways:
            gateway.work.pop(engine.name, None)
        for command in self._commands.pop(engine.name).values():
            self._timeline.after(BUS_S, self._fail, command)
        self._deaths += 1
        if self._deaths % 2:
            self._timeline.after(NOTICE_S, self.tell, EngineGone(engine.name, engine.boot_id, "died"))

    def tell(self, event: Incoming) -> None:
        """Let the core take in an event, and have its commands carried out."""
        began_ns = time.thread_time_ns()
        commands = self.core.handle(event, self._timeline.now_s)
        kind = type(event).__name__
        self.cost.cpu_ns[kind] += time.thread_time_ns() - began_ns
        self.cost.calls[kind] += 1
        for command in commands:
            if isinstance(command, EngineCommand):
                engine = self._engines[command.engine]
                if not engine.is_alive or engine.boot_id != command.boot_id:
                    self._timeline.after(BUS_S, self._fail, command)
                    continue
                self._commands[engine.name][command.command] = command
                engine.after(BUS_S, partial(self._carry_out, engine, command))
            elif isinstance(command, AnswerFailed):
                self._timeline.after(BUS_S, self._failed, command)
            elif isinstance(command, Unstage):
                self._engines[command.engine].staged.pop(command.digest, None)

    def _carry_out(self, engine: FleetEngine, command: EngineCommand) -> None:
        match command:
            case Stage():
                engine.stage(command.digest, partial(self._answer, engine, command, partial(_stage_done, command)))
            case Attach():
                digests = tuple(request.digest for request in command.requests)
                engine.attach(digests, partial(self._attached, engine, command))
            case Remove():
                held = engine.adapters.get(command.digest)
                if held is not None:
                    held.is_draining = True
                ends_s = self._timeline.now_s + command.timeout_s
                engine.after(engine.shape.timings.remove_s, partial(self._remove, engine, command, ends_s))
            case FetchState():
                asked_s = self._timeline.now_s - BUS_S
                engine.after(engine.shape.timings.look_s, partial(self._look, engine, command, asked_s))

    def _attached(self, engine: FleetEngine, command: Attach) -> None:
        results: list[AttachResult] = []
        for request in command.requests:
            digest = request.digest
            held = engine.adapters.get(digest)
            if held is not None:
                results.append(AttachResult(digest, held.name))
            elif digest not in engine.staged:
                results.append(AttachResult(digest, error_code="not_staged", error="not staged"))
            elif len(engine.adapters) >= engine.shape.capacity:
                results.append(AttachResult(digest, error_code="full", error="full"))
            else:
                results.append(AttachResult(digest, engine.hold(digest).name, 6.0))
                self._tally.loaded(digest, self._timeline.now_s)
                engine.after(BUS_S, partial(self._resident, engine.name, digest))
        self._apply(engine, command.command)
        self._answer(engine, command, lambda: AttachDone(engine.name, command.boot_id, command.command, tuple(results)))

    def _remove(self, engine: FleetEngine, command: Remove, ends_s: float) -> None:
        held = engine.adapters.get(command.digest)
        if held is not None and held.in_flight and self._timeline.now_s < ends_s:
            engine.after(0.05, partial(self._remove, engine, command, ends_s))
            return
        removed = held is None or not held.in_flight
        if held is not None and removed:
            engine.drop(command.digest)
            self._tally.evicted(command.digest, self._timeline.now_s)
            engine.after(BUS_S, partial(self._leave, command.digest, engine.name))
        elif held is not None:
            held.is_draining = False
        self._apply(engine, command.command)
        self._answer(
            engine,
            command,
            lambda: RemoveDone(engine.name, command.boot_id, command.command, command.digest, removed),
        )

    def _look(self, engine: FleetEngine, command: FetchState, asked_s: float) -> None:
        shape = engine.shape
        state = EngineState(
            engine=engine.name, base="base", base_digest="", boot_id=engine.boot_id, pools=(POOL,), url="",
            condition="ready", build="fleet", capabilities=frozenset(), capacity=shape.capacity, slots=shape.slots,
            max_rank=shape.max_rank, max_running=shape.max_running, list_version=engine.list_version,
            last_command=self._last_command(engine), running=len(engine.running), waiting=len(engine.waiting),
            residents=tuple(
                Resident(held.digest, held.name, held.in_flight, ADAPTER_BYTES, held.served)
                for held in engine.adapters.values()
            ),
            staged=tuple(engine.staged),
        )  # fmt: skip
        self._answer(engine, command, lambda: EngineLooked(command.command, state, asked_s))

    def _answer(self, engine: FleetEngine, command: EngineCommand, outcome: Callable[[], Incoming]) -> None:
        self._commands[engine.name].pop(command.command, None)
        self._timeline.after(BUS_S, self.tell, outcome())

    def _fail(self, command: EngineCommand) -> None:
        self.tell(CommandFailed(command.engine, command.boot_id, command.command, "engine_failed", "it is down"))

    def _beat(self, engine: FleetEngine, boot_id: object) -> None:
        if not engine.is_alive or engine.boot_id != boot_id:
            return
        self._timeline.after(BEAT_S, self._beat, engine, boot_id)
        shape = engine.shape
        self.tell(
            EngineBeat(
                engine.name, engine.boot_id, (POOL,), "ready", shape.capacity, shape.max_rank, engine.list_version,
                self._last_command(engine), len(engine.running), len(engine.waiting), shape.max_running,
            )
        )  # fmt: skip

    def _tick(self) -> None:
        self._timeline.after(TICK_S, self._tick)
        self.tell(Tick())

    def _apply(self, engine: FleetEngine, command: int) -> None:
        self._commands[engine.name].pop(command, None)
        self._applied[engine.name] = max(self._applied[engine.name], command)

    def _last_command(self, engine: FleetEngine) -> int:
        under_way = [
            number for number, sent in self._commands[engine.name].items() if isinstance(sent, Attach | Remove)
        ]
        return min(under_way) - 1 if under_way else self._applied[engine.name]

    # What gateways do.

    def _send(self, gateway: Gateway, request: Request) -> bool:
        engines = self._where.get(request.digest)
        if not engines:
            return False
        work = gateway.work
        best = min(engines, key=lambda name: work.get(name, 0)) if len(engines) > 1 else engines[0]
        for name in (best, *(name for name in engines if name != best)):
            if self._engines[name].submit(request):
                work[name] = work.get(name, 0) + 1
                return True
        return False

    def _wait(self, gateway: Gateway, request: Request) -> None:
        waiting = gateway.waiting.get(request.digest)
        if waiting is not None:
            waiting.append(request)
            return
        gateway.waiting[request.digest] = [request]
        event = LoadAsked(self._wanted(request), "interactive", _waiter(gateway), request.asked_s + DEADLINE_S)
        self._timeline.after(BUS_S, self.tell, event)
        self._timeline.after(AGAIN_S, self._retry, gateway, request.digest)
        self._timeline.after(RENEW_S, self._renew, gateway, request)

    def _retry(self, gateway: Gateway, digest: str) -> None:
        """An engine that was draining may admit again."""
        if digest in gateway.waiting and self._where.get(digest):
            self._resident_at(gateway, digest)
            if digest in gateway.waiting:
                self._timeline.after(AGAIN_S, self._retry, gateway, digest)

    def _renew(self, gateway: Gateway, first: Request) -> None:
        waiting = gateway.waiting.get(first.digest)
        if waiting and waiting[0] is first:
            event = InterestRenewed(self._wanted(first), "interactive", _waiter(gateway), first.asked_s + DEADLINE_S)
            self._timeline.after(BUS_S, self.tell, event)
            self._timeline.after(RENEW_S, self._renew, gateway, first)
            self._retry(gateway, first.digest)

    def _resident(self, engine: str, digest: str) -> None:
        engines = self._where.setdefault(digest, [])
        if engine not in engines:
            engines.append(engine)
        for gateway in self._gateways:
            if digest in gateway.waiting:
                self._resident_at(gateway, digest)

    def _resident_at(self, gateway: Gateway, digest: str) -> None:
        left = [request for request in gateway.waiting.pop(digest) if not self._send(gateway, request)]
        if left:
            gateway.waiting[digest] = left
        else:
            self._timeline.after(BUS_S, self.tell, InterestReleased(LoadKey(POOL, digest), _waiter(gateway)))

    def _leave(self, digest: str, engine: str) -> None:
        engines = self._where.get(digest, [])
        if engine in engines:
            engines.remove(engine)
        if not engines:
            self._where.pop(digest, None)

    def _failed(self, answer: AnswerFailed) -> None:
        self.refusals[answer.code] += 1
        for gateway in self._gateways:
            for _ in gateway.waiting.pop(answer.wanted.key.digest, ()):
                self._tally.failed()

    def _wanted(self, request: Request) -> Wanted:
        tenant = f"t{request.policy % TENANTS}"
        return Wanted(LoadKey(POOL, request.digest), tenant, f"{tenant}/p{request.policy}", 8, ADAPTER_BYTES)


def _waiter(gateway: Gateway) -> str:
    return f"g{gateway.number}"


def _stage_done(command: Stage) -> StageDone:
    return StageDone(command.engine, command.boot_id, command.command, command.digest)
