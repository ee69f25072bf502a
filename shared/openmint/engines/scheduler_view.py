"""What a scheduler tells of its engines and loads when it is asked, and how to ask: for people, never for routing.

The leader of a base answers on `query_subject(base)`, every leader on `EVERY_LEADER`. Whoever may use these subjects
sees all tenants; a gateway asks for one tenant and passes on nothing else.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from openmint.bus.connection import Bus
from openmint.errors import BusUnavailable, OpenmintError
from openmint.events import EngineHeartbeat

EVERY_LEADER = "openmint.scheduler.query.v1"
"""Asked here, the leaders of all bases answer, each for itself."""

ANSWER_TIMEOUT_S = 2.0
QUIET_S = 0.15
"""So long after an answer nobody else is expected to answer; leaders take a millisecond."""

BEAT_TIMEOUT_S = 1.5
"""An engine tells of itself every second."""


def query_subject(base: str) -> str:
    """Where the leader of a base answers what it knows."""
    return f"{EVERY_LEADER}.{base}"


class _Seen(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class SchedulerQuery(_Seen):
    """What is asked; an empty body asks for everything."""

    tenant: str = Field(default="", description="Only this tenant's loads, and no engines; empty: all")
    residents: bool = Field(default=True, description="List what each engine holds")


class ResidentSeen(_Seen):
    """An adapter on an engine."""

    revision: str
    adapter_name: str = ""
    in_flight: int = 0
    adapter_bytes: int = 0
    is_leaving: bool = False


class EngineSeen(_Seen):
    """An engine as its base's scheduler sees it; `seen_ago_s` is the age of its newest heartbeat."""

    engine: str
    base: str = ""
    boot_id: str = ""
    pools: list[str] = []
    condition: str = ""
    is_usable: bool | None = None
    seen_ago_s: float | None = None
    capacity: int | None = None
    resident_count: int = 0
    residents: list[ResidentSeen] = []
    staged_count: int | None = None
    staging: int | None = None
    attaching: int | None = None
    running: int | None = None
    max_running: int | None = None
    waiting: int | None = None


class LoadSeen(_Seen):
    """A load that is not answered yet; `position` counts from 1 among those that wait in its pool."""

    base: str = ""
    pool: str
    revision: str
    tenant: str = ""
    policy: str = ""
    load_class: str = ""
    phase: str = ""
    engine: str | None = None
    position: int | None = None
    expected_wait_s: float | None = None
    waited_s: float = 0.0
    deadline_in_s: float | None = None
    waiters: int = 0
    tries: int = 0
    why: str = Field(default="", description="What it waits for")
    trouble: str = Field(default="", description="What went wrong with its last try")


class SchedulerSeen(_Seen):
    """One base, as its leader sees it."""

    base: str
    epoch: int = 0
    engines: list[EngineSeen] = []
    loads: list[LoadSeen] = []
    waiting: dict[str, int] = {}
    loads_total: int = 0


async def ask_leader(bus: Bus, base: str, query: SchedulerQuery | None = None) -> SchedulerSeen | None:
    """What the leader of a base knows; None when nobody leads it. Raises: BusUnavailable."""
    if not bus.nc.is_connected:
        raise BusUnavailable("the bus is not connected", retry_after_s=1.0)
    try:
        answer = await bus.nc.request(query_subject(base), _body(query), timeout=ANSWER_TIMEOUT_S)
    except (TimeoutError, NatsError):
        return None
    return _read(answer)


async def ask_every_leader(bus: Bus, query: SchedulerQuery | None = None) -> list[SchedulerSeen]:
    """What the leaders of all bases know, by base. Raises: BusUnavailable."""
    found: dict[str, SchedulerSeen] = {}
    inbox = bus.nc.new_inbox()
    async with _listening(bus, inbox) as answers:
        await _publish(bus, EVERY_LEADER, _body(query), inbox)
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(QUIET_S if found else ANSWER_TIMEOUT_S):
                    message = await answers.get()
                if message.headers and message.headers.get("Status") == "503":
                    break
                seen = _read(message)
                if seen is not None:
                    found[seen.base] = seen
    return [found[base] for base in sorted(found)]


async def hear_engines(bus: Bus) -> list[EngineSeen]:
    """The engines that tell of themselves now, when no scheduler can be asked. Raises: BusUnavailable."""
    heard: dict[str, EngineHeartbeat] = {}
    async with _listening(bus, EngineHeartbeat.subject_filter()) as beats:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BEAT_TIMEOUT_S):
                while True:
                    with contextlib.suppress(ValidationError):
                        beat = EngineHeartbeat.model_validate_json((await beats.get()).data)
                        heard[beat.engine] = beat
    return [_of_heartbeat(heard[engine]) for engine in sorted(heard)]


def _of_heartbeat(beat: EngineHeartbeat) -> EngineSeen:
    return EngineSeen(
        engine=beat.engine,
        base=beat.base,
        boot_id=str(beat.boot_id),
        pools=list(beat.pools),
        condition=beat.state,
        seen_ago_s=0.0,
        capacity=beat.capacity,
        resident_count=beat.residents,
        staged_count=beat.staged,
        running=beat.running,
        max_running=beat.max_running or None,
        waiting=beat.waiting,
    )


def _body(query: SchedulerQuery | None) -> bytes:
    return query.model_dump_json().encode() if query is not None else b""


def _read(message: Msg) -> SchedulerSeen | None:
    """An answer; None when it is not one. Engines and loads name their base, so that lists can be put together."""
    try:
        seen = SchedulerSeen.model_validate_json(message.data)
    except ValidationError:
        return None
    engines = [engine.model_copy(update={"base": seen.base}) for engine in seen.engines]
    loads = [load.model_copy(update={"base": seen.base}) for load in seen.loads]
    return seen.model_copy(update={"engines": engines, "loads": loads})


async def _publish(bus: Bus, subject: str, body: bytes, reply: str) -> None:
    try:
        await bus.nc.publish(subject, body, reply=reply)
    except NatsError as error:
        raise BusUnavailable(f"can't ask {subject}: {error!r}", retry_after_s=1.0) from error


@contextlib.asynccontextmanager
async def _listening(bus: Bus, subject: str) -> AsyncGenerator["asyncio.Queue[Msg]"]:
    if not bus.nc.is_connected:
        raise BusUnavailable("the bus is not connected", retry_after_s=1.0)
    messages: asyncio.Queue[Msg] = asyncio.Queue(maxsize=10_000)

    async def on_message(message: Msg) -> None:
        await messages.put(message)

    subscription = await bus.nc.subscribe(subject, cb=on_message)
    try:
        yield messages
    finally:
        with contextlib.suppress(NatsError, OSError, OpenmintError):
            await subscription.unsubscribe()
