"""The scheduler's core and conductor over simulated engines in virtual time, with a seed, faults and invariants.

A failure names its seed: `SIMULATION_SEED=<n>` runs that night alone.
"""

import asyncio
import os
import random
from collections import Counter

import pytest
from tests.simulation.checked_core import CheckedCore

from openmint.engines.simulated import SimulatedEngine, SimulatedTimings
from openmint.virtual_time import VirtualClock, run_virtually
from openmint_scheduler.conductor import Conductor, TimeLimits
from openmint_scheduler.handlers import engine_beat, engine_gone
from openmint_scheduler.limits import Limits
from openmint_scheduler.messages import (
    AliasTurned,
    AnswerFailed,
    InterestReleased,
    InterestRenewed,
    LoadAsked,
    LoadKey,
    Wanted,
)

FAST_SEEDS = 2
SEEDS = [int(os.environ["SIMULATION_SEED"])] if "SIMULATION_SEED" in os.environ else list(range(8))
NIGHTS = [pytest.param(seed, marks=[pytest.mark.slow] * (seed >= FAST_SEEDS)) for seed in SEEDS]

POLICIES = 60
NIGHT_S = 60.0
QUIET_S = 40.0
"""After the faults have stopped: enough for every retry, restart and lapse."""

LATE_S = 1.0
"""An answer may come so long after a deadline: a tick, and a command's round trip."""


def digest(number):
    return f"sha256:{number:064x}"


class Night:
    """Waiters, engines and faults of one seed."""

    def __init__(
        self,
        seed,
        *,
        faults=True,
        engines=3,
        capacity=6,
        timings=None,
        rate=12.0,
        policies=POLICIES,
        night_s=NIGHT_S,
        is_flat=False,
        **strategies,
    ):
        self.random = random.Random(seed)
        self.clock = VirtualClock()
        self.has_faults = faults
        self.engines = [
            SimulatedEngine(
                f"e{number}", self.clock, capacity=capacity, timings=timings or SimulatedTimings(), tell=self.told
            )
            for number in range(engines)
        ]
        by_url = {engine.url: engine for engine in self.engines}
        # What is only evaluated leaves early on purpose; a night without faults counts loads, and keeps it.
        keep_s = 10.0 if faults else 1e9
        limits = Limits(max_waiting=40, settle_s=0.5, warm_s=20.0, evaluation_keep_s=keep_s)
        self.core = CheckedCore(limits, **strategies)
        self.conductor = Conductor(
            self.core, 1, self.clock, by_url.__getitem__, answer=self.answered, note=lambda note: None,
            time_limits=TimeLimits(stage_s=3.0, attach_s=3.0),
        )  # fmt: skip
        self.waiting = {}
        self.outcomes = Counter()
        self.verdict_waits = [0.0]
        self.rate = rate
        self.is_flat = is_flat
        self.night_s = night_s
        self.policies = policies
        self.is_quiet = False
        self.bad = {digest(number) for number in range(POLICIES - 3, POLICIES)} if faults else set()

    async def told(self, fact):
        if type(fact).__name__ == "EngineLeft" and self.random.random() < 0.5:
            self.conductor.tell(engine_gone(fact))

    def answered(self, answer: AnswerFailed):
        for future in self.waiting.pop(answer.wanted.key, []):
            if not future.done():
                future.set_result(answer.code)

    def where(self, name):
        """The engines on which a revision really answers."""
        return [engine for engine in self.engines if engine.is_alive and name in engine.adapters]

    async def waiter(self, number, load_class, deadline_s):
        name = digest(number)
        wanted = Wanted(LoadKey("serve", name), f"t{number % 4}", f"t{number % 4}/p{number}", 8, 5_000_000)
        who = f"w{self.random.random()}"
        ends_s = self.clock.monotonic_s() + deadline_s
        gives_up_s = ends_s if self.random.random() < 0.9 else self.clock.monotonic_s() + 1.0
        future = asyncio.get_running_loop().create_future()
        self.waiting.setdefault(wanted.key, []).append(future)
        was_heard = self.random.random() < 0.95
        if was_heard:  # Else the request is lost on the bus, and the renewal must do.
            self.conductor.tell(LoadAsked(wanted, load_class, who, ends_s))
        asked_s = renewed_s = self.clock.monotonic_s()
        outcome = ""
        while not outcome:
            now_s = self.clock.monotonic_s()
            if future.done():
                outcome = future.result()
            elif self.core.state.ledger.serving("serve", name) and self.where(name):
                outcome = "resident"
            elif now_s >= gives_up_s:
                outcome = "load_timeout" if gives_up_s == ends_s else "left"
            else:
                if now_s - renewed_s >= 2.0:
                    renewed_s = now_s
                    self.conductor.tell(InterestRenewed(wanted, load_class, who, ends_s))
                await asyncio.sleep(0.05)
        if outcome == "overloaded" and was_heard:
            self.verdict_waits.append(self.clock.monotonic_s() - asked_s)
        if self.random.random() < 0.8:
            self.conductor.tell(InterestReleased(wanted.key, who))
        assert self.clock.monotonic_s() <= ends_s + LATE_S, "answered long after its deadline"
        assert (outcome == "bad_adapter") <= (name in self.bad)
        self.outcomes[(self.is_quiet, outcome)] += 1
        if outcome == "resident":
            engine = self.random.choice(self.where(name))
            async with engine.request(name) as is_admitted:
                if is_admitted:
                    await asyncio.sleep(self.random.expovariate(1 / 0.4))

    async def arrivals(self, until_s):
        tasks = []
        while self.clock.monotonic_s() < until_s:
            await asyncio.sleep(self.random.expovariate(self.rate))
            number = min(self.policies - 1, int(self.random.paretovariate(0.7)) - 1)
            if self.is_flat:
                number = self.random.randrange(self.policies)
            load_class = self.random.choice(["interactive", "interactive", "rollout", "evaluation"])
            patience_s = self.random.choice([5.0, 15.0, 30.0])
            tasks.append(asyncio.create_task(self.waiter(number, load_class, patience_s)))
        for task in tasks:
            await task

    async def aliases(self, until_s):
        version = 0
        while self.clock.monotonic_s() < until_s:
            await asyncio.sleep(self.random.expovariate(0.3))
            version += 1
            to, previous = (
                (Wanted(LoadKey("serve", digest(self.random.randrange(POLICIES - 3))), "t0", "t0/alias"),)
                for _ in range(2)
            )
            self.conductor.tell(AliasTurned("t0/alias@production", version, to, previous))

    async def trouble(self, until_s):
        if not self.has_faults:
            return
        for engine in self.engines:
            engine.faults.bad = self.bad
        while self.clock.monotonic_s() < until_s:
            await asyncio.sleep(self.random.expovariate(0.6))
            engine = self.random.choice(self.engines)
            match self.random.randrange(7):
                case 0:
                    await engine.die(announced=True)
                case 1:
                    await engine.die()
                case 2:
                    engine.faults.hangs_until_s = self.clock.monotonic_s() + self.random.choice([1.0, 4.0, 9.0])
                case 3:
                    engine.faults.refused = {digest(self.random.randrange(10))}
                case 4:
                    engine.faults.lied_about = {digest(self.random.randrange(10))}
                case 5:
                    engine.faults.store_is_away = True
                    asyncio.get_running_loop().call_later(1.5, setattr, engine.faults, "store_is_away", False)
                case _:
                    engine.adapters = {name: a for name, a in engine.adapters.items() if a.in_flight}  # It forgets.
                    engine._list_version += 1
            if not engine.is_alive:
                asyncio.get_running_loop().call_later(
                    self.random.choice([0.2, 3.0, 8.0]), lambda engine=engine: self.restart(engine)
                )

    def restart(self, engine):
        if not engine.is_alive:
            self.tasks.append(asyncio.create_task(engine.start()))

    async def heartbeats(self):
        while True:
            for engine in self.engines:
                beat = engine.heartbeat()
                if beat is not None and (self.is_quiet or self.random.random() < 0.97):
                    self.conductor.beat(engine_beat(beat), beat.control_url)
            await asyncio.sleep(1.0)

    async def run(self):
        self.tasks = []
        for engine in self.engines:
            await engine.start()
        background = [asyncio.create_task(self.heartbeats()), asyncio.create_task(self.conductor.run())]
        await asyncio.gather(self.arrivals(self.night_s), self.aliases(self.night_s), self.trouble(self.night_s))
        for engine in self.engines:
            engine.faults.refused, engine.faults.lied_about = set(), set()
            engine.faults.hangs_until_s = 0.0
            if not engine.is_alive:
                await engine.start()
        await asyncio.sleep(12.0)
        self.is_quiet = True
        await self.arrivals(self.clock.monotonic_s() + 15.0)
        await asyncio.sleep(QUIET_S)
        if self.conductor.broken is not None:
            raise self.conductor.broken
        for task in background:
            if task.done():
                task.result()
            task.cancel()
        return self


def at_rest(night):
    """What must be true when nobody wants anything any more."""
    state = night.core.state
    left = {key: load.phase for key, load in state.loads.items() if load.load_class != "prefetch"}
    assert not left, f"loads that nobody waits for: {left}"
    assert not any(entry.attaching or entry.removing or entry.staging for entry in state.ledger.engines.values())
    for engine in night.engines:
        entry = state.ledger.engines[engine.name]
        assert set(entry.residents) == set(engine.adapters), "the ledger is not what the engine holds"


@pytest.mark.parametrize("seed", NIGHTS)
def test_no_request_is_lost_and_no_invariant_breaks_under_faults(seed):
    print(f"SIMULATION_SEED={seed}")
    night = run_virtually(Night(seed).run())
    at_rest(night)
    quiet = Counter({outcome: count for (is_quiet, outcome), count in night.outcomes.items() if is_quiet})
    assert quiet["resident"] > 100
    assert quiet["load_failed"] == 0, "an engine's fault outlived the fault"
    assert quiet["load_timeout"] + quiet["overloaded"] <= 0.02 * quiet.total()


@pytest.mark.parametrize("seed", NIGHTS[:3])
def test_without_faults_everybody_is_served_and_nothing_is_loaded_twice(seed):
    print(f"SIMULATION_SEED={seed}")
    night = run_virtually(Night(seed, faults=False, capacity=POLICIES).run())
    at_rest(night)
    assert {outcome for _, outcome in night.outcomes} <= {"resident", "left"}
    attaches = sum((engine.attaches for engine in night.engines), Counter())
    assert max(attaches.values()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", NIGHTS[:2])
def test_far_beyond_capacity_verdicts_come_at_once_and_the_admitted_are_served(seed):
    print(f"SIMULATION_SEED={seed}")
    slow = SimulatedTimings(stage_s=0.3, gap_s=0.3)
    night = Night(
        seed, faults=False, engines=2, capacity=4, timings=slow, rate=30.0, policies=300, night_s=10.0, is_flat=True
    )
    run_virtually(night.run())
    at_rest(night)
    busy = Counter({outcome: count for (is_quiet, outcome), count in night.outcomes.items() if not is_quiet})
    assert busy["overloaded"] > 0.2 * busy.total()
    assert busy["resident"] > 40
    assert max(night.verdict_waits) < 0.5, "a refusal came late"


@pytest.mark.slow
def test_the_same_seed_gives_the_same_night():
    first, second = (run_virtually(Night(5).run()) for _ in range(2))
    assert first.outcomes == second.outcomes
    assert [engine.batches for engine in first.engines] == [engine.batches for engine in second.engines]
