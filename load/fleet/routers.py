"""Ways that people use today: a router picks an engine for each request, and the engine loads what it has not got.

Engines evict the adapter that was used longest ago, among idle ones. To be fair to them, the router knows everything
at once (who holds what, who is gone, all outstanding work), staging runs beside the engine, and everything that is
ready is attached in one gap, as with us: only the choices differ.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from load.fleet.engine import FleetEngine, Request
from load.fleet.night import Night

BUSY_AT = 1.0
"""Prefer-loaded passes over an engine whose outstanding requests are this many times what it runs at once."""


@dataclass(slots=True)
class OnDemandEngine:
    """What a router and its engine know of each other."""

    engine: FleetEngine
    number: int
    loading: dict[str, list[Request]] = field(default_factory=dict[str, list[Request]])
    ready: dict[str, None] = field(default_factory=dict[str, None])
    is_attaching: bool = False


Choice = Callable[["Routed", Request], OnDemandEngine]


class Routed:
    """One router before engines that load on demand. `outstanding` has shape [engines]; those that are down are at the
    largest value."""

    def __init__(self, choose: Choice, seed: int) -> None:
        self.random = random.Random(seed)
        self.engines: list[OnDemandEngine] = []
        self.alive: list[OnDemandEngine] = []
        self.outstanding: NDArray[np.int64] = np.zeros(0, np.int64)
        self.where: dict[str, dict[int, None]] = {}
        """Engines that hold a revision, or are loading it."""
        self.changes = 0
        """Engines that have come or gone."""
        self.remembered: dict[int, tuple[int, int]] = {}
        """By policy: engine, and `changes` when it was chosen."""
        self._choose = choose
        self._numbers: dict[str, int] = {}

    def begin(self, night: Night) -> None:
        """Take over the fleet."""
        self._tally, self._timeline = night.tally, night.timeline
        self.engines = [OnDemandEngine(engine, number) for number, engine in enumerate(night.engines)]
        self._numbers = {engine.name: number for number, engine in enumerate(night.engines)}
        self.outstanding = np.zeros(len(self.engines), np.int64)
        for each in self.engines:
            if not each.engine.is_alive:
                self.outstanding[each.number] = np.iinfo(np.int64).max
        self._count_alive()

    def ask(self, request: Request) -> None:
        """Choose, and send; what is not there is loaded first."""
        chosen = self._choose(self, request)
        self.outstanding[chosen.number] += 1
        is_hit = chosen.engine.submit(request)
        if not request.lost:
            self._tally.asked(is_hit=is_hit)
        if is_hit:
            return
        request.was_cold = True
        waiting = chosen.loading.get(request.digest)
        if waiting is not None:
            waiting.append(request)
            return
        chosen.loading[request.digest] = [request]
        self.where.setdefault(request.digest, {})[chosen.number] = None
        chosen.engine.stage(request.digest, partial(self._staged, chosen, request.digest))

    def ended(self, engine: FleetEngine, request: Request) -> None:
        """Less work there; perhaps an adapter is idle now that others wait to replace."""
        number = self._numbers[engine.name]
        self.outstanding[number] -= 1
        if self.engines[number].ready:
            self._attach(self.engines[number])

    def joined(self, engine: FleetEngine) -> None:
        """It may be chosen from now on."""
        self.outstanding[self._numbers[engine.name]] = 0
        self._count_alive()

    def died(self, engine: FleetEngine) -> None:
        """Requests that waited for a load there are asked again."""
        gone = self.engines[self._numbers[engine.name]]
        for digest in [*engine.adapters, *gone.loading]:
            self._leave(digest, gone.number)
        waiting = [request for requests in gone.loading.values() for request in requests]
        gone.loading, gone.ready, gone.is_attaching = {}, {}, False
        self.outstanding[gone.number] = np.iinfo(np.int64).max
        self.alive = [each for each in self.alive if each is not gone]
        self.changes += 1
        for request in waiting:
            request.lost += 1
            self._timeline.after(0.0, self.ask, request)

    def _count_alive(self) -> None:
        self.alive = [each for each in self.engines if each.engine.is_alive]
        self.changes += 1

    def _leave(self, digest: str, number: int) -> None:
        holders = self.where.get(digest)
        if holders is not None:
            holders.pop(number, None)
            if not holders:
                del self.where[digest]

    def _staged(self, at: OnDemandEngine, digest: str) -> None:
        at.ready[digest] = None
        self._attach(at)

    def _attach(self, at: OnDemandEngine) -> None:
        """Begin a gap with all that is ready, as far as there is room or something idle."""
        if at.is_attaching:
            return
        engine = at.engine
        room = engine.shape.capacity - len(engine.adapters)
        batch: list[str] = []
        for digest in at.ready:
            if len(batch) >= room and not self._evict(at):
                break
            batch.append(digest)
            room = engine.shape.capacity - len(engine.adapters)
        if not batch:
            return
        for digest in batch:
            del at.ready[digest]
        at.is_attaching = True
        engine.attach(tuple(batch), partial(self._attached, at, batch))

    def _evict(self, at: OnDemandEngine) -> bool:
        idle = [held for held in at.engine.adapters.values() if not held.in_flight]
        if not idle:
            return False
        digest = min(idle, key=lambda held: held.used_s).digest
        at.engine.drop(digest)
        self._leave(digest, at.number)
        self._tally.evicted(digest, self._timeline.now_s)
        return True

    def _attached(self, at: OnDemandEngine, batch: list[str]) -> None:
        at.is_attaching = False
        for digest in batch:
            at.engine.hold(digest)
            self._tally.loaded(digest, self._timeline.now_s)
            for request in at.loading.pop(digest):
                assert at.engine.submit(request)
        if at.ready:
            self._attach(at)


def at_random(routed: Routed, request: Request) -> OnDemandEngine:
    """Any engine."""
    return routed.random.choice(routed.alive)


def rendezvous(routed: Routed, request: Request) -> OnDemandEngine:
    """The living engine that the policy likes best, whatever it is busy with."""
    number, at_change = routed.remembered.get(request.policy, (0, -1))
    if at_change != routed.changes:
        numbers = np.array([each.number for each in routed.alive], np.uint64)
        number = int(numbers[int(_mixed(numbers * np.uint64(0x9E3779B97F4A7C15) + np.uint64(request.policy)).argmax())])
        routed.remembered[request.policy] = (number, routed.changes)
    return routed.engines[number]


def prefer_loaded(routed: Routed, request: Request) -> OnDemandEngine:
    """Of the engines that have it, or are loading it, the least busy one; when all of them are full, any least busy."""
    busy_at = BUSY_AT * routed.engines[0].engine.shape.max_running
    holders = routed.where.get(request.digest)
    if holders:
        best = min(holders, key=lambda number: (routed.outstanding[number], number))
        if routed.outstanding[best] < busy_at:
            return routed.engines[best]
    return routed.engines[int(routed.outstanding.argmin())]


ROUTERS: dict[str, Choice] = {"random": at_random, "rendezvous": rendezvous, "prefer-loaded": prefer_loaded}


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A well-mixed hash of each value (the finisher of splitmix64)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))
