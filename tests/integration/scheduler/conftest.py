"""A scheduler on the real bus and database, over simulated engines that tell of themselves on the bus."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from openmint.bus.connection import Bus, connect_bus
from openmint.bus.provision import provision
from openmint.clock import WallClock
from openmint.engines.loads import LoadOrder, LoadWaiter
from openmint.engines.residency import ResidencyView
from openmint.engines.simulated import SimulatedEngine, SimulatedTimings
from openmint.identifiers import new_id
from openmint_scheduler.app import Scheduler
from openmint_scheduler.settings import SchedulerSettings

HEARTBEAT_EVERY_S = 0.3


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


class SimulatedLists:
    """The engines' resident lists, without HTTP."""

    def __init__(self, engines):
        self._engines = engines

    async def fetch(self, control_url):
        return self._engines[control_url].resident_list()

    async def close(self):
        pass


class Fleet:
    """Engines of one base that only this test knows, and the processes around them."""

    def __init__(self, bus: Bus, settings: SchedulerSettings, base: str) -> None:
        self.bus = bus
        self.settings = settings
        self.base = base
        self.engines: dict[str, SimulatedEngine] = {}
        self.schedulers: list[Scheduler] = []
        self.view = ResidencyView(SimulatedLists(self.engines))
        self.loads = LoadWaiter(bus, self.view)
        self._buses: list[Bus] = []
        self._beating: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.view.start(self.bus)
        await self.loads.start()
        self._beating = asyncio.create_task(self._beat())

    async def engine(self, name: str, **facts) -> SimulatedEngine:
        engine = SimulatedEngine(
            f"{self.base}-{name}", WallClock(), base=self.base, tell=self.bus.publish_soft,
            timings=facts.pop("timings", SimulatedTimings(gap_s=0.01)), **facts,
        )  # fmt: skip
        self.engines[engine.url] = engine
        await engine.start()
        return engine

    async def scheduler(self, name: str = "scheduler") -> Scheduler:
        bus = await connect_bus(self.settings, name)
        self._buses.append(bus)
        started = Scheduler(bus, self.settings, WallClock(), self.engines.__getitem__)
        self.schedulers.append(started)
        await started.start()
        return started

    def order(self, number: int, **facts) -> LoadOrder:
        return LoadOrder(
            self.base, "acme", f"p{number}", UUID(int=number), digest(number), rank=8, adapter_bytes=5_000_000, **facts
        )

    async def close(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
        for scheduler in self.schedulers:
            await scheduler.close()
        await self.loads.close()
        await self.view.close()
        for bus in self._buses:
            await bus.close()

    async def _beat(self) -> None:
        while True:
            for engine in list(self.engines.values()):
                heartbeat = engine.heartbeat()
                if heartbeat is not None:
                    with contextlib.suppress(Exception):
                        await self.bus.publish_core(heartbeat.subject(), heartbeat)
            await asyncio.sleep(HEARTBEAT_EVERY_S)


@pytest.fixture
async def fleet(bus: Bus, settings) -> AsyncIterator[Fleet]:
    await provision(bus)
    base = f"base-{new_id().hex[-12:]}"
    values = settings.model_dump() | {"bases": base}
    made = Fleet(bus, SchedulerSettings(**values), base)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
def eventually():
    """Wait until something is true."""

    async def wait(condition, within_s: float = 15.0):
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(0.02)

    return wait
