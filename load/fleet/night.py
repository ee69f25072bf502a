"""One run: arrivals, engines that die and join, and one way of bringing requests to engines.

Every way gets the same arrivals, service times and deaths. Requests that wait on an engine that dies are asked again;
those that run there are cut off, whatever the way.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from load.fleet.engine import EngineShape, FleetEngine, Request
from load.fleet.popularity import Arrivals
from load.fleet.tally import Tally
from load.fleet.timeline import Timeline


@dataclass(frozen=True, slots=True)
class NightPlan:
    """What happens, apart from the way. Times in seconds from the beginning; figures count from `counted_from_s`."""

    engines: int
    joining: int
    """Engines beyond `engines` that come up one by one during the counted time."""
    deaths: int
    """Of them, every fourth engine never comes back; the others are back, empty, after `restart_s`."""
    restart_s: float
    shape: EngineShape
    arrivals: Arrivals
    policies: int
    mean_service_s: float
    counted_from_s: float
    ends_s: float
    seed: int


class Way(Protocol):
    """A way of bringing requests to engines."""

    def begin(self, night: "Night") -> None:
        """Engines are up, empty."""
        ...

    def ask(self, request: Request) -> None:
        """A request comes, or comes again because its engine died before it ran."""
        ...

    def ended(self, engine: FleetEngine, request: Request) -> None:
        """A request is done."""
        ...

    def joined(self, engine: FleetEngine) -> None:
        """An engine is up, for the first time or again."""
        ...

    def died(self, engine: FleetEngine) -> None:
        """An engine is gone; what ran or waited on it is told afterwards."""
        ...


class Night:
    """See the module. `run` it once."""

    def __init__(self, plan: NightPlan, way: Way) -> None:
        self.plan = plan
        self.timeline = Timeline()
        self.tally = Tally(plan.policies, len(plan.arrivals.times_s), plan.counted_from_s)
        self.engines = [
            FleetEngine(f"e{number:04d}", plan.shape, self.timeline, self._ended, self._lost)
            for number in range(plan.engines + plan.joining)
        ]
        self._way = way
        self._digests: dict[int, str] = {}
        random = np.random.default_rng([plan.seed, 3])
        self._services_s: NDArray[np.float64] = random.exponential(plan.mean_service_s, len(plan.arrivals.times_s))
        self._random = random

    def run(self) -> Tally:
        """The whole night."""
        plan, timeline = self.plan, self.timeline
        for engine in self.engines[: plan.engines]:
            engine.start()
        self._way.begin(self)
        span_s = plan.ends_s - plan.counted_from_s
        for number, engine in enumerate(self.engines[plan.engines :], start=1):
            timeline.after(plan.counted_from_s + span_s * number / (plan.joining + 1), self._join, engine)
        victims = self._random.choice(plan.engines, plan.deaths, replace=False)
        for number, (victim, share) in enumerate(zip(victims, self._random.uniform(0, 0.8, plan.deaths), strict=True)):
            timeline.after(plan.counted_from_s + span_s * share, self._die, self.engines[victim], number % 4 == 3)
        if len(plan.arrivals.times_s):
            timeline.after(float(plan.arrivals.times_s[0]), self._arrive, 0)
        timeline.after(plan.counted_from_s, self.tally.begin, self.engines)
        timeline.run(plan.ends_s)
        self.tally.end(self.engines)
        return self.tally

    def digest(self, policy: int) -> str:
        """The revision that a policy is asked for."""
        digest = self._digests.get(policy)
        if digest is None:
            digest = self._digests[policy] = f"sha256:{policy:064x}"
        return digest

    def _arrive(self, number: int) -> None:
        arrivals = self.plan.arrivals
        if number + 1 < len(arrivals.times_s):
            self.timeline.after(float(arrivals.times_s[number + 1]) - self.timeline.now_s, self._arrive, number + 1)
        policy = int(arrivals.policies[number])
        self._way.ask(Request(policy, self.digest(policy), self.timeline.now_s, float(self._services_s[number])))

    def _ended(self, engine: FleetEngine, request: Request) -> None:
        self.tally.answered(request)
        self._way.ended(engine, request)

    def _lost(self, request: Request) -> None:
        if request.began_s >= 0:
            self.tally.cut_off += 1
        else:
            request.lost += 1
            self._way.ask(request)

    def _die(self, engine: FleetEngine, is_for_good: bool) -> None:
        self._way.died(engine)
        engine.die()
        if not is_for_good:
            self.timeline.after(self.plan.restart_s, self._join, engine)

    def _join(self, engine: FleetEngine) -> None:
        engine.start()
        self._way.joined(engine)
