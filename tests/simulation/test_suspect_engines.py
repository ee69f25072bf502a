"""Suspect engines in virtual time: the same core and conductor over simulated engines; one adapter is poison."""

import asyncio
import random
from collections import Counter

import pytest

from openmint.engines.simulated import SimulatedEngine, SimulatedTimings
from openmint.virtual_time import VirtualClock, run_virtually
from openmint_scheduler.conductor import Conductor
from openmint_scheduler.core import LoaderScheduler
from openmint_scheduler.handlers import engine_beat, engine_gone
from openmint_scheduler.limits import Limits
from openmint_scheduler.messages import InterestReleased, InterestRenewed, LoadAsked, LoadKey, Wanted

POISON = 0
RESTART_S = 60.0


def digest(number):
    return f"sha256:{number:064x}"


class Ward:
    """Engines, one leader after another, and clients that ask for a policy until they are answered."""

    def __init__(self, engines=3, policies=6, restart_s=RESTART_S, poison=(POISON,)):
        self.clock = VirtualClock()
        self.engines = [
            SimulatedEngine(f"e{n}", self.clock, timings=SimulatedTimings(restart_s=restart_s), tell=self.told)
            for n in range(engines)
        ]
        for engine in self.engines:
            engine.faults.poisonous = {digest(number) for number in poison}
        self.policies = policies
        self.epoch = 0
        self.condemned = []
        self.notes = []
        self.failed = Counter()
        self.answered = Counter()
        self.waits = []
        self.lead()

    def lead(self):
        """A new leader, which knows nothing."""
        self.epoch += 1
        by_url = {engine.url: engine for engine in self.engines}
        self.core = LoaderScheduler(Limits(settle_s=0.5))
        self.conductor = Conductor(
            self.core, self.epoch, self.clock, by_url.__getitem__, answer=self.fail, note=self.notes.append,
            condemn=self.condemned.append,
        )  # fmt: skip
        self.running = asyncio.get_running_loop().create_task(self.conductor.run())

    def fail(self, answer):
        self.failed[answer.wanted.key.digest, answer.code] += 1

    async def told(self, fact):
        if type(fact).__name__ == "EngineLeft":
            self.conductor.tell(engine_gone(fact))

    async def beats(self):
        while True:
            for engine in self.engines:
                beat = engine.heartbeat()
                if beat is not None:
                    self.conductor.beat(engine_beat(beat), beat.control_url)
            await asyncio.sleep(1.0)

    async def client(self, number, until_s, think_s=0.7):
        """Ask again and again, each time with five seconds of patience."""
        name, asks = digest(number), 0
        wanted = Wanted(LoadKey("serve", name), f"t{number}", f"t{number}/p{number}", 8, 5_000_000)
        while self.clock.monotonic_s() < until_s:
            asks += 1
            who, asked_s, is_answered = f"{number}-{asks}", self.clock.monotonic_s(), False
            self.conductor.tell(LoadAsked(wanted, "interactive", who, asked_s + 120.0))
            while not is_answered and self.clock.monotonic_s() < min(asked_s + 120.0, until_s + 5.0):
                places = [e for e in self.engines if e.is_alive and e.condition == "ready" and name in e.adapters]
                for engine in places:
                    async with engine.request(name) as is_answered:
                        await asyncio.sleep(0.2 if is_answered else 0.0)
                    if is_answered:
                        break
                if not is_answered:
                    await asyncio.sleep(0.25)
                    if (name, "quarantined") in self.failed:
                        break
                    self.conductor.tell(InterestRenewed(wanted, "interactive", who, asked_s + 120.0))
            self.conductor.tell(InterestReleased(wanted.key, who))
            if is_answered:
                self.answered[number] += 1
                self.waits.append((self.clock.monotonic_s() - asked_s, number))
            if (name, "quarantined") in self.failed:
                return
            await asyncio.sleep(think_s)

    async def run(self, seconds, poison_at_s=10.0, new_leader_at_s=()):
        for engine in self.engines:
            await engine.start()
        beating = asyncio.create_task(self.beats())
        good = [n for n in range(self.policies) if digest(n) not in self.engines[0].faults.poisonous]
        clients = [asyncio.create_task(self.client(n, seconds)) for n in good]
        await asyncio.sleep(poison_at_s)
        bad = [n for n in range(self.policies) if n not in good]
        clients += [asyncio.create_task(self.client(n, seconds)) for n in bad]
        for at_s in new_leader_at_s:
            await asyncio.sleep(at_s - self.clock.monotonic_s())
            await self.conductor.close()
            self.running.cancel()
            self.lead()
        await asyncio.gather(*clients)
        if self.conductor.broken is not None:
            raise self.conductor.broken
        beating.cancel()
        self.running.cancel()
        return self

    def restarted(self):
        return [engine.name for engine in self.engines if engine.restarts]

    def happened(self, happening):
        return [note.fields for note in self.notes if note.happening == happening]


def ward(seconds=150.0, new_leader_at_s=(), **how):
    async def run():
        return await Ward(**how).run(seconds, new_leader_at_s=new_leader_at_s)

    return run_virtually(run())


def test_one_bad_adapter_is_condemned_alone_and_costs_one_engine_one_restart():
    seen = ward()
    assert {condemned.digest for condemned in seen.condemned} == {digest(POISON)}
    assert seen.condemned[0].failures >= 2
    assert len(seen.restarted()) == 1
    assert sum(engine.restarts for engine in seen.engines) == 1
    assert seen.failed[digest(POISON), "quarantined"] >= 1
    assert not seen.core.state.suspects.held


def test_its_neighbours_answer_elsewhere_within_five_seconds_and_are_never_held():
    seen = ward()
    assert not any(key != digest(POISON) for key, _ in seen.failed)
    assert all(seen.answered[number] > 100 for number in range(1, seen.policies))
    slowest_s, number = max(seen.waits)
    assert slowest_s <= 5.0, f"policy {number} waited {slowest_s:.1f} s"
    assert {fields["revision"] for fields in seen.happened("adapter.suspected")} == {digest(POISON)}


def test_a_suspect_is_attached_nowhere_before_it_was_examined():
    seen = ward(engines=4)
    attached = sum(engine.attaches[digest(POISON)] for engine in seen.engines)
    examined = sum(engine.examined[digest(POISON)] for engine in seen.engines)
    assert attached == 1
    assert examined >= 1


def test_the_only_engine_of_a_pool_comes_back_for_the_neighbours():
    seen = ward(engines=1, seconds=200.0)
    assert [condemned.digest for condemned in seen.condemned] == [digest(POISON)]
    assert seen.engines[0].restarts == 1
    late = [wait_s for wait_s, _ in seen.waits if wait_s > 5.0]
    assert late
    assert max(late) < RESTART_S + 10.0


def test_a_new_leader_reads_the_suspects_from_the_heartbeats():
    seen = ward(new_leader_at_s=(13.0, 72.0), seconds=200.0)
    assert {condemned.digest for condemned in seen.condemned} == {digest(POISON)}
    assert len(seen.restarted()) <= 2
    assert sum(engine.attaches[digest(POISON)] for engine in seen.engines) <= 2


def test_two_bad_adapters_are_both_condemned_and_nobody_else():
    seen = ward(poison=(0, 1), policies=7, engines=3, seconds=300.0)
    assert {condemned.digest for condemned in seen.condemned} == {digest(0), digest(1)}
    assert len(seen.restarted()) <= 2
    assert not any(key not in (digest(0), digest(1)) for key, _ in seen.failed)


def test_an_innocent_suspect_is_exonerated_and_loads_again():
    async def run():
        held = Ward(engines=2, poison=())
        beating = asyncio.create_task(held.beats())
        for engine in held.engines:
            await engine.start()
        client = asyncio.create_task(held.client(3, 120.0))
        await asyncio.sleep(8.0)
        where = next(engine for engine in held.engines if digest(3) in engine.adapters)
        where.condition, where.suspects = "suspect", [digest(3)]
        await client
        beating.cancel()
        held.running.cancel()
        return held, where

    held, where = run_virtually(run())
    assert where.examined[digest(3)] == 1
    assert not held.condemned
    assert [fields["revision"] for fields in held.happened("adapter.exonerated")] == [digest(3)]
    assert held.answered[3] > 20


def test_an_engine_that_stays_suspect_is_restarted_a_few_times_and_then_left_out():
    async def run():
        held = Ward(engines=2, poison=(), restart_s=5.0)
        beating = asyncio.create_task(held.beats())
        for engine in held.engines:
            await engine.start()
        for _ in range(60):
            held.engines[0].condition = "suspect"
            await asyncio.sleep(5.0)
        beating.cancel()
        held.running.cancel()
        return held

    held = run_virtually(run())
    assert held.engines[0].restarts == 4
    assert len(held.happened("engine.given_up")) == 1


@pytest.mark.parametrize("engines", [2, 5])
def test_at_most_two_engines_are_restarted_however_many_there_are(engines):
    assert len(ward(engines=engines, policies=10).restarted()) <= 2


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=[pytest.mark.slow] * (seed > 1)) for seed in range(10)])
def test_among_other_faults_nobody_but_the_poison_is_condemned(seed):
    """Engines die and come back, leaders change; the night is repeated by its seed."""

    async def run():
        chance = random.Random(seed)
        night = Ward(engines=4, policies=12, restart_s=20.0)

        async def trouble():
            for _ in range(12):
                await asyncio.sleep(chance.uniform(4.0, 12.0))
                engine = chance.choice(night.engines)
                if not engine.is_alive:
                    continue
                await engine.die(announced=chance.random() < 0.5)
                await asyncio.sleep(chance.uniform(0.5, 6.0))
                if not engine.is_alive:
                    await engine.start()

        troubling = asyncio.create_task(trouble())
        changes = sorted(chance.uniform(5.0, 120.0) for _ in range(3))
        await night.run(220.0, poison_at_s=chance.uniform(5.0, 40.0), new_leader_at_s=[at_s + 40.0 for at_s in changes])
        await troubling
        return night

    night = run_virtually(run())
    assert {condemned.digest for condemned in night.condemned} <= {digest(POISON)}
    assert not any(code == "quarantined" for name, code in night.failed if name != digest(POISON))
    suspected = {fields["revision"] for fields in night.happened("adapter.suspected")}
    assert suspected <= {digest(POISON)}
    assert all(night.answered[number] > 60 for number in range(1, night.policies))
    assert not night.core.state.suspects.held or not night.condemned
