"""A wave: many distinct policies wanted at one moment, on simulated engines that hold none of them, in virtual time.

Here everything but the engines is what serves: core and conductor, with `openmint.engines.simulated` behind them.
"""

import asyncio
import math
from dataclasses import dataclass

from openmint.engines.simulated import EngineFact, SimulatedEngine
from openmint.engines.simulated_timings import SimulatedTimings
from openmint.events import AdapterResident
from openmint.virtual_time import VirtualClock, run_virtually
from openmint_scheduler.conductor import Conductor, TimeLimits
from openmint_scheduler.core import LoaderScheduler
from openmint_scheduler.handlers import engine_beat
from openmint_scheduler.messages import AnswerFailed, InterestReleased, InterestRenewed, LoadAsked, LoadKey, Wanted

STOCK = SimulatedTimings(stage_s=0.0, gap_s=0.0, attach_s=1.36)
"""The paper's stock load: all of it in the engine, one after the other."""

PACKED = SimulatedTimings(stage_s=0.0323, gap_s=0.0, attach_s=0.16 - 0.0323)
"""The paper's packed load of 0.16 s, of which reading (0.0067 s) and building objects (0.0256 s) need no engine."""

SETTLED_S = 3.0
"""From the engines' start to the wave: heartbeats and first looks are in."""

RENEW_S = 2.0
DEADLINE_S = 600.0
ANSWER_S = 1 / 15
"""One token at the paper's 15 a second: longer answers would hide how long loading takes."""


@dataclass(frozen=True, slots=True)
class WaveResult:
    """`makespan_s`: from the wave to the last policy's request in an engine. `loads` over all engines."""

    makespan_s: float
    errors: int
    loads: int


def makespan_bound_s(policies: int, engines: int, timings: SimulatedTimings) -> float:
    """What no order can beat: n = ceil(policies / engines) loads on the fullest engine, attaches one after the other,
    stagings `parallel_stages` at a time beside them:

    max(stage + gap + n * attach, ceil(n / parallel_stages) * stage + gap + attach)
    """
    most = math.ceil(policies / engines)
    staging_s = math.ceil(most / timings.parallel_stages) * timings.stage_s
    one_after_another_s = timings.stage_s + timings.gap_s + most * timings.attach_s
    return max(one_after_another_s, staging_s + timings.gap_s + timings.attach_s)


def run_wave(policies: int, engines: int, timings: SimulatedTimings) -> WaveResult:
    """One wave, from empty engines; each holds as many adapters as its share, and an eighth more."""
    return run_virtually(_wave(policies, engines, timings))


async def _wave(policies: int, engines: int, timings: SimulatedTimings) -> WaveResult:
    clock = VirtualClock()
    arrived: dict[str, asyncio.Future[str]] = {}

    async def told(fact: EngineFact) -> None:
        if isinstance(fact, AdapterResident) and not arrived[fact.digest].done():
            arrived[fact.digest].set_result("")

    def failed(answer: AnswerFailed) -> None:
        if not arrived[answer.wanted.key.digest].done():
            arrived[answer.wanted.key.digest].set_result(answer.code)

    capacity = math.ceil(policies / engines * 1.125)
    fleet = [
        SimulatedEngine(
            f"e{number:02d}", clock, capacity=capacity, slots=64, max_running=64, timings=timings, tell=told
        )
        for number in range(engines)
    ]
    by_url = {engine.url: engine for engine in fleet}
    limits = TimeLimits(attach_s=2.0 * timings.attach_s * capacity + 30.0)
    conductor = Conductor(
        LoaderScheduler(), 1, clock, by_url.__getitem__, answer=failed, note=lambda note: None, time_limits=limits
    )

    async def hearts() -> None:
        while True:
            for engine in fleet:
                beat = engine.heartbeat()
                if beat is not None:
                    conductor.beat(engine_beat(beat), beat.control_url)
            await clock.sleep(1.0)

    async def one(number: int) -> float:
        """One policy's request; when it was in an engine, or a negative number for an error."""
        digest = f"sha256:{number:064x}"
        wanted = Wanted(LoadKey("serve", digest), f"t{number % 50}", f"t{number % 50}/p{number}", 8, 105_580_000)
        arrived[digest] = asyncio.get_running_loop().create_future()
        ends_s = clock.monotonic_s() + DEADLINE_S
        conductor.tell(LoadAsked(wanted, "interactive", "g0", ends_s))
        while not (await asyncio.wait([arrived[digest]], timeout=RENEW_S))[0]:
            conductor.tell(InterestRenewed(wanted, "interactive", "g0", ends_s))
        conductor.tell(InterestReleased(wanted.key, "g0"))
        if arrived[digest].result():
            return -1.0
        engine = next(engine for engine in fleet if digest in engine.adapters)
        async with engine.request(digest) as is_admitted:
            began_s = clock.monotonic_s()
            await clock.sleep(ANSWER_S)
            return began_s if is_admitted else -1.0

    for engine in fleet:
        await engine.start()
    background = [asyncio.create_task(hearts()), asyncio.create_task(conductor.run())]
    await clock.sleep(SETTLED_S)
    asked_s = clock.monotonic_s()
    began_s = await asyncio.gather(*(one(number) for number in range(policies)))
    for task in background:
        task.cancel()
    await conductor.close()
    if conductor.broken is not None:
        raise conductor.broken
    errors = sum(when < 0 for when in began_s)
    return WaveResult(max(began_s) - asked_s, errors, sum(engine.attaches.total() for engine in fleet))
