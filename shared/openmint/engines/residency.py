"""Where every resident revision is, in the memory of one process: fed by the bus, never by asking before a request.

Heartbeats say which engines live; residency facts say what comes and goes; when a heartbeat tells of another list
than the one that is known, the engine's list is fetched. A message missed costs a second, nothing else, so plain
subscriptions do, and a restarted bus needs no care.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from pydantic import ValidationError

from openmint.bus.connection import Bus
from openmint.clock import Clock, WallClock
from openmint.endings import end
from openmint.engines.residency_index import KnownEngine, Placement, ResidencyIndex
from openmint.engines.resident_list import ResidentListSource
from openmint.errors import EngineFailed, LoadTimeout
from openmint.events import AdapterGone, AdapterResident, EngineHeartbeat, EngineLeft
from openmint.events.base import Event

log = structlog.get_logger()

SWEEP_EVERY_S = 0.5

E = TypeVar("E", bound=Event)

__all__ = ["Placement", "ResidencyView"]


class ResidencyView:
    """A residency index that keeps itself up to date from the bus. `start` it, `close` it."""

    def __init__(self, lists: ResidentListSource, clock: Clock | None = None) -> None:
        self.index = ResidencyIndex()
        self._lists = lists
        self._clock = clock or WallClock()
        self._bus: Bus | None = None
        self._subscriptions: list[Subscription] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def engines_with(self, base: str, pool: str, digest: str) -> list[Placement]:
        """The engines of a pool on which the revision answers."""
        return self.index.placements((base, pool, digest))

    def engines_of(self, base: str, pool: str) -> list[Placement]:
        """The ready engines of a pool, under the base's own model name."""
        return self.index.placements((base, pool, ""))

    def has_engine(self, base: str, pool: str) -> bool:
        """True when an engine of the pool is alive, ready or not."""
        return self.index.has_engine(base, pool)

    async def wait_resident(self, base: str, pool: str, digest: str, timeout_s: float) -> Placement:
        """The first engine on which the revision answers. Raises: LoadTimeout."""
        placements = self.engines_with(base, pool, digest)
        if placements:
            return placements[0]
        try:
            async with asyncio.timeout(timeout_s):
                return await self.index.expect((base, pool, digest))
        except TimeoutError as error:
            raise LoadTimeout(f"revision {digest} of {base} was not resident within {timeout_s:.1f} s") from error

    async def start(self, bus: Bus) -> None:
        """Listen from now on; what engines hold already comes with their next heartbeats."""
        self._bus = bus
        await self._listen(bus, EngineHeartbeat, self.on_heartbeat)
        await self._listen(bus, AdapterResident, self.on_resident)
        await self._listen(bus, AdapterGone, self.on_gone)
        await self._listen(bus, EngineLeft, self.on_left)
        self._spawn(self._sweep())

    async def close(self) -> None:
        """Stop listening."""
        for subscription in self._subscriptions:
            if self._bus is not None and self._bus.nc.is_connected:
                await subscription.unsubscribe()
        await end(*self._tasks)
        await self._lists.close()

    async def on_heartbeat(self, beat: EngineHeartbeat) -> None:
        """An engine lives; get its list if it is not the one we know."""
        is_new = beat.engine not in self.index.engines
        known = self.index.heartbeat(beat, self._clock.monotonic_s())
        if is_new:
            log.info("engine.seen", engine=beat.engine, base=beat.base, pools=beat.pools)
        if beat.list_hash not in (known.known_hash(), known.list_hash) and not known.is_fetching:
            known.is_fetching = True
            self._spawn(self._fetch(known, beat.list_hash))

    async def on_resident(self, fact: AdapterResident) -> None:
        """A revision answers."""
        self.index.resident(fact, self._clock.monotonic_s())

    async def on_gone(self, fact: AdapterGone) -> None:
        """A load of a revision answers no more."""
        self.index.gone(fact, self._clock.monotonic_s())

    async def on_left(self, fact: EngineLeft) -> None:
        """An engine's boot is over."""
        self.index.left(fact)

    async def _fetch(self, known: KnownEngine, list_hash: str) -> None:
        asked_s = self._clock.monotonic_s()
        try:
            residents = await self._lists.fetch(known.control_url)
        except EngineFailed as error:
            log.warning("residents.not_fetched", engine=known.engine, detail=error.detail)
        else:
            self.index.listed(residents, asked_s, self._clock.monotonic_s())
            # Remembered only once it settled what was known: then an engine with a hash of its own is asked once.
            known.list_hash = "" if known.has_unsettled(asked_s) else list_hash
        finally:
            known.is_fetching = False

    async def _sweep(self) -> None:
        """Forget silent engines; while the bus is away nobody is heard, and silence means nothing."""
        was_blind = False
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            now_s = self._clock.monotonic_s()
            is_blind = self._bus is None or not self._bus.nc.is_connected
            if was_blind and not is_blind:
                self.index.give_time(now_s)
            was_blind = is_blind
            if not is_blind:
                for engine in self.index.forget_silent(now_s):
                    log.warning("engine.forgotten", engine=engine, reason="silent")

    async def _listen(self, bus: Bus, kind: type[E], handler: Callable[[E], Awaitable[None]]) -> None:
        async def on_message(message: Msg) -> None:
            try:
                event = kind.model_validate_json(message.data)
            except ValidationError as error:
                log.warning("residency.unreadable", subject=message.subject, detail=str(error)[:300])
                return
            await handler(event)

        self._subscriptions.append(await bus.nc.subscribe(kind.subject_filter(), cb=on_message))

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
