"""Carries out what the core decides, on engines, and brings back how it went. Knows neither bus nor database.

All commands overlap; each has its own task and its own time limit. When an engine says that a newer scheduler leads,
the conductor stops commanding at once; also when the core breaks, for what it knows is then worth nothing.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from openmint.clock import Clock
from openmint.endings import end
from openmint.engines.protocol import CommandStamp, Engine
from openmint.errors import EngineFailed, OpenmintError, StaleEpoch
from openmint_scheduler.core import LoaderScheduler
from openmint_scheduler.load_traces import LoadTraces
from openmint_scheduler.messages import (
    AnswerFailed,
    Attach,
    AttachDone,
    CommandFailed,
    Condemn,
    EngineBeat,
    EngineLooked,
    Examine,
    ExamineDone,
    FetchState,
    Incoming,
    Noted,
    Remove,
    RemoveDone,
    Restart,
    RestartDone,
    Stage,
    StageDone,
    Tick,
    Unstage,
)

log = structlog.get_logger()

TICK_EVERY_S = 0.25
"""Lapses, deadlines and silence are noticed so late."""

LOOK_TIMEOUT_S = 3.0
UNSTAGE_TIMEOUT_S = 10.0
REMOVE_MARGIN_S = 10.0
RESTART_TIMEOUT_S = 10.0
EXAMINE_TIMEOUT_S = 60.0
"""Some six probes of one token, and the wait until nothing else is in flight."""

EngineFactory = Callable[[str], Engine]
"""From a control URL to the client of that engine."""

EngineCommand = Stage | Attach | Remove | Unstage | FetchState | Restart | Examine
Outcome = EngineLooked | StageDone | AttachDone | RemoveDone | RestartDone | ExamineDone | None


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """How long an engine may take."""

    stage_s: float = 120.0
    attach_s: float = 30.0


class Conductor:
    """One core, its engines and its epoch. `answer`, `note` and `condemn` carry its words to the outside."""

    def __init__(
        self,
        core: LoaderScheduler,
        epoch: int,
        clock: Clock,
        engine_factory: EngineFactory,
        *,
        answer: Callable[[AnswerFailed], None],
        note: Callable[[Noted], None],
        condemn: Callable[[Condemn], None] | None = None,
        time_limits: TimeLimits | None = None,
        traces: LoadTraces | None = None,
    ) -> None:
        self.core = core
        self.epoch = epoch
        self.is_over = asyncio.Event()
        self.broken: BaseException | None = None
        self._clock = clock
        self._engine_factory = engine_factory
        self._answer = answer
        self._note = note
        self._condemn = condemn or (lambda condemned: None)
        self._time_limits = time_limits or TimeLimits()
        self._traces = traces or LoadTraces()
        self._engines: dict[str, tuple[str, Engine]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, event: Incoming) -> None:
        """Let the core take in an event, and start what it decides."""
        if self.is_over.is_set():
            return
        try:
            commands = self.core.handle(event, self._clock.monotonic_s())
        except Exception as error:
            self._break(error)
            raise
        for command in commands:
            match command:
                case AnswerFailed():
                    self._answer(command)
                case Condemn():
                    self._condemn(command)
                case Noted():
                    self._note(command)
                case _:
                    self._spawn(self._carry_out(command))

    def beat(self, event: EngineBeat, control_url: str) -> None:
        """A heartbeat, with where the engine's host is reached."""
        known = self._engines.get(event.engine)
        if known is None or known[0] != control_url:
            self._engines[event.engine] = (control_url, self._engine_factory(control_url))
            if known is not None:
                self._spawn(known[1].close())
        self.tell(event)

    async def run(self) -> None:
        """Let the core feel time, until cancelled or no longer the leader."""
        while not self.is_over.is_set():
            self.tell(Tick())
            await self._clock.sleep(TICK_EVERY_S)

    async def close(self) -> None:
        """Stop commanding. What engines have begun they will finish."""
        self.is_over.set()
        await end(*self._tasks)
        for _, engine in self._engines.values():
            await engine.close()

    async def _carry_out(self, command: EngineCommand) -> None:
        try:
            known = self._engines.get(command.engine)
            if known is None:
                raise EngineFailed(f"nobody told where engine {command.engine} is reached")
            limit_s = self._limit_s(command)
            try:
                async with asyncio.timeout(limit_s):
                    outcome = await self._call(known[1], command)
            except TimeoutError as error:
                raise EngineFailed(f"{type(command).__name__} took longer than {limit_s:.0f} s") from error
        except StaleEpoch as error:
            log.warning("leader.replaced", engine=command.engine, epoch=self.epoch, detail=error.detail)
            self.is_over.set()
        except OpenmintError as error:
            self._failed(command, error.code, error.detail)
        except Exception as error:
            log.exception("command.failed", engine=command.engine, command=type(command).__name__)
            self._failed(command, EngineFailed.code, repr(error))
        else:
            if outcome is not None:
                self.tell(outcome)

    def _failed(self, command: EngineCommand, code: str, detail: str) -> None:
        self.tell(CommandFailed(command.engine, command.boot_id, command.command, code, detail))

    async def _call(self, engine: Engine, command: EngineCommand) -> Outcome:
        stamp = CommandStamp(self.epoch, command.command)
        name, boot_id, number = command.engine, command.boot_id, command.command
        match command:
            case Stage():
                with self._traces.staging(name, command.digest):
                    await engine.stage(stamp, command.digest)
                return StageDone(name, boot_id, number, command.digest)
            case Attach():
                with self._traces.attaching(name, command.requests) as requests:
                    results = await engine.attach(stamp, requests)
                return AttachDone(name, boot_id, number, tuple(results))
            case Remove():
                removed = await engine.remove(stamp, command.adapter_name, command.timeout_s)
                return RemoveDone(name, boot_id, number, command.digest, removed)
            case Unstage():
                await engine.unstage(stamp, command.digest)
                return None
            case Restart():
                await engine.restart(stamp, command.reason)
                return RestartDone(name, boot_id, number)
            case Examine():
                return ExamineDone(name, boot_id, number, await engine.examine(stamp, command.request))
            case FetchState():
                asked_s = self._clock.monotonic_s()
                return EngineLooked(number, await engine.state(), asked_s)

    def _limit_s(self, command: EngineCommand) -> float:
        match command:
            case Stage():
                return self._time_limits.stage_s
            case Attach():
                return self._time_limits.attach_s
            case Remove():
                return command.timeout_s + REMOVE_MARGIN_S
            case Unstage():
                return UNSTAGE_TIMEOUT_S
            case FetchState():
                return LOOK_TIMEOUT_S
            case Restart():
                return RESTART_TIMEOUT_S
            case Examine():
                return EXAMINE_TIMEOUT_S

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._break(error)

    def _break(self, error: BaseException) -> None:
        self.broken = self.broken or error
        self.is_over.set()
