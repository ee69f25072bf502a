"""One engine of a simulated fleet: the timings of `openmint.engines.simulated`, plus requests that take time.

Modelled: stagings side by side, one gap at a time with everything that is ready in it, draining, running and waiting
requests, a bound on distinct adapters that run at once, a boot that ends. Left out: tokens one by one, the prefix
cache, and what a load costs the requests that run beside it.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import NAMESPACE_URL, UUID, uuid5

from load.fleet.timeline import Timeline
from openmint.engines.simulated import SimulatedTimings

SKIPPED = 16
"""Waiting requests that are passed over, for want of a slot for their adapter, before the engine waits."""


@dataclass(frozen=True, slots=True)
class EngineShape:
    """What every engine of a fleet is like."""

    capacity: int = 32
    """Adapters that it holds; the paper has hundreds, the two-core engines of our measurements 32."""

    slots: int = 16
    max_running: int = 16
    max_rank: int = 64
    max_staged: int = 256
    timings: SimulatedTimings = field(default_factory=SimulatedTimings)


@dataclass(slots=True, eq=False)
class Request:
    """One request; `digest` is that of its policy's revision. Times are -1 until they have come."""

    policy: int
    digest: str
    asked_s: float
    service_s: float
    was_cold: bool = False
    gateway: int = 0
    began_s: float = -1.0
    engine: str = ""
    lost: int = 0


@dataclass(slots=True)
class HeldAdapter:
    """An adapter on an engine. `in_flight` counts what runs and what waits."""

    digest: str
    name: str
    used_s: float
    in_flight: int = 0
    running: int = 0
    served: int = 0
    is_draining: bool = False


class FleetEngine:
    """See the module. `ended` is told of each request that is done, `lost` of each that died with the engine."""

    def __init__(
        self,
        name: str,
        shape: EngineShape,
        timeline: Timeline,
        ended: Callable[["FleetEngine", Request], None],
        lost: Callable[[Request], None],
    ) -> None:
        self.name = name
        self.shape = shape
        self.is_alive = False
        self.boot_id: UUID = uuid5(NAMESPACE_URL, name)
        self.adapters: dict[str, HeldAdapter] = {}
        self.staged: dict[str, float] = {}
        self.running: dict[Request, None] = {}
        self.waiting: deque[Request] = deque()
        self.list_version = 0
        self.answered = 0
        self.loads = 0
        self.evictions = 0
        self._boots = 0
        self._names = 0
        self._timeline = timeline
        self._ended = ended
        self._lost = lost
        self._distinct = 0
        self._gap_free_s = 0.0
        self._stagings: deque[tuple[str, Callable[[], None]]] = deque()
        self._staging = 0

    @property
    def outstanding(self) -> int:
        """Requests that run or wait."""
        return len(self.running) + len(self.waiting)

    def start(self) -> None:
        """Come up in a new boot, empty but for what is staged on the machine."""
        self._boots += 1
        self.boot_id = uuid5(NAMESPACE_URL, f"{self.name}-{self._boots}")
        self.is_alive = True
        self.list_version += 1
        self._gap_free_s = 0.0

    def die(self) -> None:
        """Lose everything in memory, requests included."""
        self.is_alive = False
        lost = [*self.running, *self.waiting]
        self.adapters, self.running, self.waiting, self._distinct = {}, {}, deque(), 0
        self._stagings, self._staging = deque(), 0
        for request in lost:
            self._lost(request)

    def submit(self, request: Request) -> bool:
        """Take a request in; False when its adapter is not admitted to here."""
        adapter = self.adapters.get(request.digest)
        if adapter is None or adapter.is_draining or not self.is_alive:
            return False
        adapter.in_flight += 1
        adapter.served += 1
        adapter.used_s = self._timeline.now_s
        request.engine = self.name
        if len(self.running) < self.shape.max_running and (adapter.running or self._distinct < self.shape.slots):
            self._run(request, adapter)
        else:
            self.waiting.append(request)
        return True

    def stage(self, digest: str, done: Callable[[], None]) -> None:
        """Fetch, verify and repack; `done` is not called when the boot ends before."""
        if digest in self.staged:
            done()
        elif self._staging >= self.shape.timings.parallel_stages:
            self._stagings.append((digest, done))
        else:
            self._staging += 1
            self._timeline.after(self.shape.timings.stage_s, self._staged, self._boots, digest, done)

    def attach(self, digests: tuple[str, ...], done: Callable[[], None]) -> None:
        """Let the batch have a gap of its own, after those that were asked for before; then `done` applies it."""
        timings, now_s = self.shape.timings, self._timeline.now_s
        self._gap_free_s = max(now_s, self._gap_free_s) + timings.gap_s + timings.attach_s * len(digests)
        self._timeline.after(self._gap_free_s - now_s, self._if_same_boot, self._boots, done)

    def hold(self, digest: str) -> HeldAdapter:
        """Make a staged revision resident at once: what `attach` calls at its end."""
        self._names += 1
        held = self.adapters[digest] = HeldAdapter(digest, f"{digest}#{self._names}", self._timeline.now_s)
        assert len(self.adapters) <= self.shape.capacity, "more adapters than the engine holds"
        self.list_version += 1
        self.loads += 1
        return held

    def drop(self, digest: str) -> None:
        """Take an idle adapter off."""
        assert not self.adapters[digest].in_flight, "removed in flight"
        del self.adapters[digest]
        self.list_version += 1
        self.evictions += 1

    def after(self, delay_s: float, act: Callable[[], None]) -> None:
        """Do something later if this boot lives until then."""
        self._timeline.after(delay_s, self._if_same_boot, self._boots, act)

    def _if_same_boot(self, boot: int, act: Callable[[], None]) -> None:
        if self.is_alive and boot == self._boots:
            act()

    def _staged(self, boot: int, digest: str, done: Callable[[], None]) -> None:
        if not self.is_alive or boot != self._boots:
            return
        self._staging -= 1
        self.staged[digest] = self._timeline.now_s
        if self._stagings:
            self.stage(*self._stagings.popleft())
        done()

    def _run(self, request: Request, adapter: HeldAdapter) -> None:
        self._distinct += adapter.running == 0
        adapter.running += 1
        self.running[request] = None
        request.began_s = self._timeline.now_s
        self._timeline.after(request.service_s, self._finish, self._boots, request)

    def _finish(self, boot: int, request: Request) -> None:
        if not self.is_alive or boot != self._boots:
            return
        del self.running[request]
        adapter = self.adapters[request.digest]
        adapter.running -= 1
        adapter.in_flight -= 1
        self._distinct -= adapter.running == 0
        self.answered += 1
        if self.waiting:
            self._admit()
        self._ended(self, request)

    def _admit(self) -> None:
        skipped: list[Request] = []
        while self.waiting and len(self.running) < self.shape.max_running and len(skipped) < SKIPPED:
            request = self.waiting.popleft()
            adapter = self.adapters[request.digest]
            if adapter.running or self._distinct < self.shape.slots:
                self._run(request, adapter)
            else:
                skipped.append(request)
        self.waiting.extendleft(reversed(skipped))
