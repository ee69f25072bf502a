"""Requests that wait for a busy engine: one queue per tenant and engine, tenants by turns, all of it bounded.

Whether there is room is the engine's verdict alone, so the head of the queue simply asks again: at once when a
request of ours has ended there, otherwise every PROBE_EVERY_S. Only one request asks at a time; each one that got in
wakes the next.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from openmint.errors import Overloaded

PROBE_EVERY_S = 0.1
"""Another gateway's request may have ended there; no faster, or the engine is busy saying that it is busy."""

BUSY_RETRY_AFTER_S = 2.0

_Turn = asyncio.Future[None]


@dataclass(slots=True)
class _Place:
    """The queues in front of one engine."""

    tenants: OrderedDict[str, deque[_Turn]] = field(default_factory=OrderedDict[str, deque[_Turn]])
    prober: asyncio.Task[None] | None = None


class WaitingRoom:
    """Counts everybody who waits, for a load or for an engine, and lets the latter in by turns."""

    def __init__(self, per_tenant: int, in_all: int) -> None:
        self._per_tenant = per_tenant
        self._in_all = in_all
        self._waiting: dict[str, int] = {}
        self._total = 0
        self._places: dict[str, _Place] = {}

    @property
    def total(self) -> int:
        """How many wait."""
        return self._total

    @asynccontextmanager
    async def seat(self, tenant: str) -> AsyncGenerator[None]:
        """A place to wait in. Raises: Overloaded, at once, when the tenant or the process has too many waiting."""
        mine = self._waiting.get(tenant, 0)
        if mine >= self._per_tenant:
            raise Overloaded(
                f"{mine} requests of tenant {tenant} are waiting already", retry_after_s=BUSY_RETRY_AFTER_S
            )
        if self._total >= self._in_all:
            raise Overloaded(f"{self._total} requests are waiting already", retry_after_s=BUSY_RETRY_AFTER_S)
        self._waiting[tenant] = mine + 1
        self._total += 1
        try:
            yield
        finally:
            self._total -= 1
            self._waiting[tenant] -= 1
            if not self._waiting[tenant]:
                del self._waiting[tenant]

    def is_contended(self, engine: str) -> bool:
        """True when somebody waits for this engine: a newcomer then queues too, and overtakes nobody."""
        place = self._places.get(engine)
        return place is not None and bool(place.tenants)

    async def turn(self, engine: str, tenant: str, *, first: bool = False) -> None:
        """Wait until it is this request's turn to ask the engine. `first`: it has had its turn and was sent back."""
        place = self._places.setdefault(engine, _Place())
        turn: _Turn = asyncio.get_running_loop().create_future()
        queue = place.tenants.setdefault(tenant, deque())
        if first:
            # First of its tenant, not first of all: a tenant that has its share of the engine must not stand in the
            # way of others for as long as it is sent back.
            queue.appendleft(turn)
        else:
            queue.append(turn)
        if place.prober is None:
            place.prober = asyncio.create_task(self._probe(engine, place))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.wake(engine)  # Its turn came and nobody is there to take it.
            raise
        finally:
            self._leave(place, tenant, turn)

    def wake(self, engine: str) -> None:
        """There may be room: let the next one ask."""
        place = self._places.get(engine)
        if place is None:
            return
        while place.tenants:
            tenant, queue = next(iter(place.tenants.items()))
            place.tenants.move_to_end(tenant)
            while queue:
                turn = queue.popleft()
                if not queue:
                    del place.tenants[tenant]
                if not turn.done():
                    turn.set_result(None)
                    return
            place.tenants.pop(tenant, None)

    def _leave(self, place: _Place, tenant: str, turn: _Turn) -> None:
        queue = place.tenants.get(tenant)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del place.tenants[tenant]

    async def _probe(self, engine: str, place: _Place) -> None:
        while True:
            await asyncio.sleep(PROBE_EVERY_S)
            if not place.tenants:
                del self._places[engine]
                return
            self.wake(engine)
