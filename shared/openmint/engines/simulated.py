"""An engine in memory: the same protocol, with times that are set, and faults on request. The only fake we have.

It stands for an engine and its host together. It holds itself to what a real one guarantees: never more adapters than
its capacity, no name twice in a boot, nothing removed while it is in flight; a breach is an AssertionError.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import NAMESPACE_URL, UUID, uuid5

from openmint.clock import Clock
from openmint.engines.protocol import (
    AttachRequest,
    AttachResult,
    CommandStamp,
    EngineCondition,
    EngineState,
    Examination,
    Resident,
    StageResult,
)
from openmint.engines.resident_list import ResidentList
from openmint.engines.simulated_faults import SimulatedFaults
from openmint.engines.simulated_slots import SimulatedAdapter, SimulatedSlots
from openmint.engines.simulated_timings import SimulatedTimings
from openmint.errors import BadAdapter, EngineFailed, StaleEpoch, StoreUnavailable
from openmint.events import AdapterGone, AdapterResident, EngineHeartbeat, EngineJoined, EngineLeft

EngineFact = EngineJoined | EngineLeft | AdapterResident | AdapterGone

BASE_DIGEST = "sha256:" + "0" * 64


async def _tell_nobody(fact: EngineFact) -> None:
    return None


class SimulatedEngine:
    """One engine. `start`, `die` and `requests` are what a test does to it; the rest is the protocol."""

    def __init__(
        self,
        name: str,
        clock: Clock,
        *,
        base: str = "base",
        pools: tuple[str, ...] = ("serve",),
        capacity: int = 8,
        max_rank: int = 16,
        slots: int = 8,
        max_running: int = 16,
        timings: SimulatedTimings | None = None,
        tell: Callable[[EngineFact], Awaitable[object]] = _tell_nobody,
    ) -> None:
        self.name = name
        self.base = base
        self.pools = pools
        self.capacity = capacity
        self.faults = SimulatedFaults()
        self.condition: EngineCondition = "ready"
        self.is_alive = False
        self.boots = 0
        self.adapters: dict[str, SimulatedAdapter] = {}
        self.staged: set[str] = set()
        self.stages: Counter[str] = Counter()
        self.attaches: Counter[str] = Counter()
        self.batches: list[int] = []
        self.suspects: list[str] = []
        self.examined: Counter[str] = Counter()
        self.restarts = 0
        self._restarting: asyncio.Task[None] | None = None
        self._clock = clock
        self._max_rank = max_rank
        self._max_running = max_running
        self._slots = SimulatedSlots(min(slots, capacity))
        self._timings = timings or SimulatedTimings()
        self._tell = tell
        self._epoch = 0
        self._running: set[int] = set()
        self._highest_command = 0
        self._list_version = 0
        self._sequence = 0
        self._names = 0
        self._gap = asyncio.Lock()
        self._stage_room = asyncio.Semaphore(self._timings.parallel_stages)

    @property
    def url(self) -> str:
        """An address that nobody listens on."""
        return f"http://{self.name}.simulated"

    @property
    def boot_id(self) -> UUID:
        """Of the present boot; the same in every run."""
        return uuid5(NAMESPACE_URL, f"{self.name}-{self.boots}")

    @property
    def running(self) -> int:
        """Requests in flight."""
        return sum(adapter.in_flight for adapter in self.adapters.values())

    async def start(self) -> None:
        """Come up, empty but for what is staged on the machine."""
        self.boots += 1
        self.is_alive, self.condition = True, "ready"
        self.adapters, self._names, self._sequence = {}, 0, 0
        self._slots.clear()
        self._list_version += 1
        await self._tell(
            EngineJoined(
                base=self.base, base_digest=BASE_DIGEST, engine=self.name, boot_id=self.boot_id,
                pools=list(self.pools), url=self.url, control_url=self.url,
            )
        )  # fmt: skip

    async def die(self, *, announced: bool = False) -> None:
        """Lose everything in memory; `announced` when the host lives to tell."""
        self.is_alive = False
        boot_id = self.boot_id
        self.adapters = {}
        if announced:
            await self._tell(EngineLeft(base=self.base, engine=self.name, boot_id=boot_id, reason="died"))

    @asynccontextmanager
    async def request(self, digest: str) -> AsyncGenerator[bool]:
        """A request in flight for the length of the block; False when the engine answers `absent`."""
        adapter = self.adapters.get(digest)
        is_admitted = self.is_alive and adapter is not None and not adapter.is_draining and self.condition == "ready"
        if adapter is None or not is_admitted:
            yield False
            return
        adapter.in_flight += 1
        adapter.served += 1
        self._slots.put(adapter.name, self._in_use())
        try:
            if digest in self.faults.poisonous:
                self._turn_suspect(digest)
                yield False
                return
            adapter.is_proven = True
            yield True
        finally:
            adapter.in_flight -= 1

    def _turn_suspect(self, digest: str) -> None:
        """What the watch of a real engine does at the first answer that is not finite."""
        self.condition = "suspect"
        unproven = [a.digest for a in self.adapters.values() if a.in_flight and not a.is_proven]
        self.suspects = list(dict.fromkeys([*self.suspects, digest, *unproven]))

    def heartbeat(self) -> EngineHeartbeat | None:
        """What the host publishes every second; None while the engine is down."""
        if not self.is_alive or self._clock.monotonic_s() < self.faults.hangs_until_s:
            return None
        return EngineHeartbeat(
            base=self.base,
            base_digest=BASE_DIGEST,
            engine=self.name,
            boot_id=self.boot_id,
            pools=list(self.pools),
            url=self.url,
            control_url=self.url,
            state=self.condition,
            capacity=self.capacity,
            max_rank=self._max_rank,
            list_version=self._list_version,
            list_hash=self._list_hash(),
            last_command=self._last_command,
            residents=len(self.adapters),
            staged=len(self.staged),
            running=self.running,
            waiting=0,
            suspects=list(self.suspects),
            max_running=self._max_running,
        )

    def resident_list(self) -> ResidentList:
        """What the host answers to readers. Raises: EngineFailed."""
        if not self.is_alive:
            raise EngineFailed(f"engine {self.name} is down")
        return ResidentList(
            engine=self.name, base=self.base, boot_id=self.boot_id, pools=list(self.pools), url=self.url,
            list_version=self._list_version, residents=self._residents(),
        )  # fmt: skip

    async def state(self) -> EngineState:
        """What the engine holds now."""
        boot = await self._spend(self._timings.look_s)
        self._check_boot(boot)
        return EngineState(
            engine=self.name,
            base=self.base,
            base_digest=BASE_DIGEST,
            boot_id=self.boot_id,
            pools=self.pools,
            url=self.url,
            condition=self.condition,
            build="simulated",
            capabilities=frozenset({"exact_residency", "prepared_attach"}),
            capacity=self.capacity,
            slots=len(self._slots.adapters),
            max_rank=self._max_rank,
            max_running=self._max_running,
            list_version=self._list_version,
            last_command=self._last_command,
            running=self.running,
            waiting=0,
            residents=tuple(self._residents()),
            staged=tuple(sorted(self.staged)),
            slot_adapters=self._slots.adapters,
        )

    async def stage(self, stamp: CommandStamp, digest: str) -> StageResult:
        """Fetch, verify and repack."""
        self._check_epoch(stamp)
        self.stages[digest] += 1
        was_staged = digest in self.staged
        boot = self.boots
        if not was_staged:
            async with self._stage_room:
                boot = await self._spend(self._timings.stage_s)
        self._check_boot(boot)
        if self.faults.store_is_away:
            raise StoreUnavailable("the simulated store is away")
        if digest in self.faults.bad:
            raise BadAdapter(f"{digest[:19]}… has a tensor of the wrong shape")
        self.staged.add(digest)
        return StageResult(digest, "simulated", 5_000_000, 1000 * self._timings.stage_s, 0.0, was_staged)

    async def attach(self, stamp: CommandStamp, requests: list[AttachRequest]) -> list[AttachResult]:
        """Make staged revisions resident, in one gap."""
        self._check_epoch(stamp)
        self._running.add(stamp.command)
        try:
            async with self._gap:
                boot = await self._spend(self._timings.gap_s + self._timings.attach_s * len(requests))
                self._check_boot(boot)
                if any(request.digest in self.faults.deadly for request in requests):
                    await self.die(announced=True)
                    raise EngineFailed(f"engine {self.name} died while attaching")
                self.batches.append(len(requests))
                return [await self._attach_one(request) for request in requests]
        finally:
            self._applied(stamp)

    async def remove(self, stamp: CommandStamp, adapter_name: str, timeout_s: float) -> bool:
        """Drain and free."""
        self._check_epoch(stamp)
        self._running.add(stamp.command)
        try:
            adapter = next((a for a in self.adapters.values() if a.name == adapter_name), None)
            if adapter is None:
                return True
            adapter.is_draining = True
            ends_s = self._clock.monotonic_s() + timeout_s
            boot = await self._spend(self._timings.remove_s)
            while adapter.in_flight and self._clock.monotonic_s() < ends_s:
                boot = await self._spend(0.05)
            self._check_boot(boot)
            if adapter.in_flight:
                adapter.is_draining = False
                return False
            self.adapters.pop(adapter.digest, None)
            self._slots.drop(adapter.name)
            self._list_version += 1
            await self._tell(self._told_gone(adapter))
            return True
        finally:
            self._applied(stamp)

    async def unstage(self, stamp: CommandStamp, digest: str) -> None:
        """Drop a staged copy."""
        self._check_epoch(stamp)
        self._check_boot(await self._spend(self._timings.look_s))
        if digest not in self.adapters:
            self.staged.discard(digest)

    async def restart(self, stamp: CommandStamp, reason: str) -> None:
        """Die, and come up again as a fresh boot."""
        self._check_epoch(stamp)
        if self._restarting is None or self._restarting.done():
            self._restarting = asyncio.create_task(self._restart())

    async def _restart(self) -> None:
        self.restarts += 1
        await self.die(announced=True)
        await self._clock.sleep(self._timings.restart_s)
        if not self.is_alive:
            await self.start()

    async def examine(self, stamp: CommandStamp, request: AttachRequest) -> Examination:
        """Probe a staged revision alone."""
        self._check_epoch(stamp)
        self._check_boot(await self._spend(6 * self._timings.probe_s))
        if request.digest not in self.staged:
            return Examination(request.digest, 0, 0, True, "not_staged")
        self.examined[request.digest] += 1
        self.suspects = [digest for digest in self.suspects if digest != request.digest]
        failures = 2 if request.digest in self.faults.poisonous else 0
        return Examination(request.digest, 2, failures, True, "nan" if failures else "")

    async def close(self) -> None:
        """Nothing is held open."""

    async def _attach_one(self, request: AttachRequest) -> AttachResult:
        present = self.adapters.get(request.digest)
        if present is not None and not present.is_draining:
            return AttachResult(request.digest, present.name, 0.0)
        if request.digest not in self.staged:
            return AttachResult(request.digest, error_code="not_staged", error="it is not staged on this engine")
        if request.digest in self.faults.refused:
            return AttachResult(request.digest, error_code="refused", error="it does not fit")
        if len(self.adapters) >= self.capacity:
            return AttachResult(request.digest, error_code="full", error=f"it holds {self.capacity}")
        self._names += 1
        name = f"{request.label}@{request.digest}#{self._names}"
        self.attaches[request.digest] += 1
        if request.digest not in self.faults.lied_about:
            adapter = self.adapters[request.digest] = SimulatedAdapter(request.digest, name)
            assert len(self.adapters) <= self.capacity
            self._slots.put(name, self._in_use())
            self._list_version += 1
            await self._tell(self._told_resident(adapter))
        return AttachResult(request.digest, name, 1000 * self._timings.attach_s)

    def _told_resident(self, adapter: SimulatedAdapter) -> AdapterResident:
        self._sequence += 1
        return AdapterResident(
            base=self.base,
            engine=self.name,
            boot_id=self.boot_id,
            sequence=self._sequence,
            digest=adapter.digest,
            adapter_name=adapter.name,
            url=self.url,
            pools=list(self.pools),
        )

    def _told_gone(self, adapter: SimulatedAdapter) -> AdapterGone:
        self._sequence += 1
        return AdapterGone(
            base=self.base,
            engine=self.name,
            boot_id=self.boot_id,
            sequence=self._sequence,
            digest=adapter.digest,
            adapter_name=adapter.name,
        )

    def _residents(self) -> list[Resident]:
        return [Resident(a.digest, a.name, a.in_flight, 5_000_000, a.served) for a in self.adapters.values()]

    def _in_use(self) -> set[str]:
        return {adapter.name for adapter in self.adapters.values() if adapter.in_flight}

    def _list_hash(self) -> str:
        names = sorted(adapter.name for adapter in self.adapters.values())
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]

    @property
    def _last_command(self) -> int:
        return min(self._running) - 1 if self._running else self._highest_command

    def _applied(self, stamp: CommandStamp) -> None:
        self._running.discard(stamp.command)
        if stamp.epoch == self._epoch:
            self._highest_command = max(self._highest_command, stamp.command)

    def _check_epoch(self, stamp: CommandStamp) -> None:
        if not self.is_alive:
            raise EngineFailed(f"engine {self.name} is down")
        if stamp.epoch < self._epoch:
            raise StaleEpoch(f"epoch {stamp.epoch} commands, epoch {self._epoch} leads")
        if stamp.epoch > self._epoch:
            self._epoch, self._highest_command = stamp.epoch, 0
            self._running.clear()

    async def _spend(self, seconds: float) -> int:
        """Let time pass, and hang when that is the fault; returns the boot in which it began."""
        boot = self.boots
        await self._clock.sleep(seconds)
        while (left_s := self.faults.hangs_until_s - self._clock.monotonic_s()) > 0:
            await self._clock.sleep(left_s)
        return boot

    def _check_boot(self, boot: int) -> None:
        if not self.is_alive or boot != self.boots:
            raise EngineFailed(f"engine {self.name} broke off")
