"""Requests on their way to engines, with everything that `line.py` leaves out: time, futures, and where adapters are.

One line per base and pool. A request asks for its `Seat` and is refused here, or sent, or waits; room that appears is
given on at once, and a look every TICK_S finds engines and adapters that came or went, and requests that are too late.
"""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from openmint.clock import Clock
from openmint.engines.residency import Placement
from openmint.errors import Overloaded
from openmint_gateway.line import Line, LineRules
from openmint_gateway.seats import Request

TICK_S = 0.05
"""How much later than its deadline a waiting request hears of it, and a pause of a busy engine ends."""

LATE_RETRY_AFTER_S = 2.0


class Placements(Protocol):
    """Where revisions are, from memory: an engine is never asked."""

    def engines_with(self, base: str, pool: str, digest: str) -> list[Placement]:
        """The engines on which the revision is resident."""
        ...

    def engines_of(self, base: str, pool: str) -> list[Placement]:
        """All engines that are ready, under the base's own model name."""
        ...


@dataclass(slots=True)
class _Front:
    """The line of one base and pool, and those in it."""

    base: str
    pool: str
    line: Line
    turns: dict[Request, asyncio.Future[None]] = field(default_factory=dict[Request, "asyncio.Future[None]"])
    looking: asyncio.Task[None] | None = None
    seen_s: float = float("-inf")


class Seat:
    """One request's place. `leave` it, whatever happens: the room that it takes goes to the next."""

    __slots__ = ("_avoided", "_front", "_room", "request")

    def __init__(self, room: "WaitingRoom", front: _Front, request: Request) -> None:
        self.request = request
        self._room = room
        self._front = front
        self._avoided: dict[str, str] = {}

    @property
    def is_loading(self) -> bool:
        """True when its adapter is nowhere: have it loaded, then say `resident`."""
        return self.request.state == "loading"

    def arrive(self) -> bool:
        """True when it may go to `placement` now. Raises: QueueFull, WaitTooLong."""
        room, front = self._room, self._front
        now_s = room.clock.monotonic_s()
        room.look(front, now_s)
        return front.line.arrive(self.request, self._engines(), now_s)

    def resident(self) -> bool:
        """Its adapter was loaded. True when it may go to `placement` now."""
        room, front = self._room, self._front
        room.look(front, room.clock.monotonic_s())
        return front.line.resident(self.request, self._engines(), room.clock.monotonic_s())

    def sent_back(self, placement: Placement | None, *, is_busy: bool) -> bool:
        """The engine did nothing, or (without a placement) had lost the adapter. True when it may go elsewhere now."""
        room, front, engine = self._room, self._front, self.request.engine
        if not is_busy:
            self._avoided[engine] = placement.adapter_name if placement else ""
        went = front.line.sent_back(self.request, self._engines(), room.clock.monotonic_s(), is_busy=is_busy)
        room.fill(front, engine)
        return went

    async def turn(self) -> None:
        """Wait until it may go to `placement`, or must be loaded again. Raises: Overloaded when it is too late."""
        room, front = self._room, self._front
        if self.request.state != "waiting":
            return
        turn = front.turns[self.request] = asyncio.get_running_loop().create_future()
        room.keep_looking(front)
        try:
            await turn
        finally:
            front.turns.pop(self.request, None)

    def placement(self) -> Placement | None:
        """Where it goes; None when the adapter has just gone from there."""
        request = self.request
        return next((place for place in self._places() if place.engine == request.engine), None)

    def accepted(self) -> None:
        """The engine has taken it."""
        self._front.line.accepted(self.request)

    def started(self) -> None:
        """Its first token has come."""
        self._front.line.forecast.started(self.request, self._room.clock.monotonic_s())

    def leave(self, tokens: int | None = None) -> None:
        """It is over; `tokens` when the engine has ended it by itself, after so many. Leaving twice does nothing."""
        if self.request.state == "gone":
            return
        room, front = self._room, self._front
        front.line.leave(self.request, room.clock.monotonic_s(), tokens)
        room.fill(front, self.request.engine)

    def _places(self) -> list[Placement]:
        return self._room.places(self._front, self.request.adapter)

    def _engines(self) -> dict[str, int]:
        """The engines that have its adapter; one that was loaded anew is not avoided any more."""
        found = self._places()
        for place in found:
            if place.engine in self._avoided and self._avoided[place.engine] != place.adapter_name:
                del self._avoided[place.engine]
                self.request.avoided.discard(place.engine)
        return {place.engine: place.max_running for place in found}


class WaitingRoom:
    """All lines of this process."""

    def __init__(
        self, rules: LineRules, placements: Placements, clock: Clock, weights: Mapping[str, float] | None = None
    ) -> None:
        self.clock = clock
        self._rules = rules
        self._placements = placements
        self._weights = weights or {}
        self._fronts: dict[tuple[str, str], _Front] = {}

    @property
    def total(self) -> int:
        """How many wait, for a load or for an engine."""
        return sum(front.line.waiting for front in self._fronts.values())

    def lines(self) -> Iterator[tuple[str, Line]]:
        """Each base with its line, to look at."""
        for front in self._fronts.values():
            yield front.base, front.line

    def has_engine(self, base: str, pool: str) -> bool:
        """True when an engine of the base is ready."""
        return bool(self._placements.engines_of(base, pool))

    def seat(self, base: str, pool: str, request: Request) -> Seat:
        """A place for a request; nothing is decided yet."""
        front = self._fronts.get((base, pool))
        if front is None:
            front = self._fronts[base, pool] = _Front(base, pool, Line(self._rules, self._weights))
        return Seat(self, front, request)

    def places(self, front: _Front, adapter: str) -> list[Placement]:
        """Where an adapter, or the base, answers now."""
        if adapter:
            return self._placements.engines_with(front.base, front.pool, adapter)
        return self._placements.engines_of(front.base, front.pool)

    def look(self, front: _Front, now_s: float) -> None:
        """Learn which engines live, if that was some time ago."""
        if now_s - front.seen_s >= TICK_S:
            front.seen_s = now_s
            places = self._placements.engines_of(front.base, front.pool)
            front.line.see({place.engine: place.max_running for place in places})

    def fill(self, front: _Front, engine: str) -> None:
        """There may be room on an engine."""
        now_s = self.clock.monotonic_s()
        while (request := front.line.next_for(engine, now_s)) is not None:
            _wake(front, request)

    def keep_looking(self, front: _Front) -> None:
        """Look at this line until nobody is queued in it."""
        if front.looking is None or front.looking.done():
            front.looking = asyncio.create_task(self._look_on(front))

    async def _look_on(self, front: _Front) -> None:
        while front.turns:
            await asyncio.sleep(TICK_S)
            now_s = self.clock.monotonic_s()
            for request in front.line.too_late(now_s):
                turn = front.turns.get(request)
                if turn is not None and not turn.done():
                    waited_s = now_s - request.arrived_s
                    detail = f"no engine of base model {front.base} had room within {waited_s:.1f} s"
                    turn.set_exception(Overloaded(detail, retry_after_s=LATE_RETRY_AFTER_S))
            self.look(front, now_s)
            self._look_for_adapters(front, now_s)
            for engine in list(front.line.engines):
                self.fill(front, engine)

    def _look_for_adapters(self, front: _Front, now_s: float) -> None:
        queues = front.line.queues
        for adapter in list(queues.adapters):
            engines = [place.engine for place in self.places(front, adapter)]
            if engines:
                queues.place(adapter, engines, now_s)
            else:
                for request in queues.waiting_for(adapter):
                    front.line.unplaced(request, now_s)
                    _wake(front, request)


def _wake(front: _Front, request: Request) -> None:
    turn = front.turns.get(request)
    if turn is not None and not turn.done():
        turn.set_result(None)
