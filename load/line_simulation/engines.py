"""Two engines, a crowd of clients, and who lets them in: everything in simulated time, nothing but the line is real.

A step's cost is what one core was measured to need (SmolLM2-135M, rank 8): a constant, so much for each different
adapter in the batch, and so much for a prompt that is read in it.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from openmint_gateway.line import Line, LineRules
from openmint_gateway.problems import QueueFull, WaitTooLong
from openmint_gateway.seats import Request

STEP_S, ADAPTER_S, PROMPT_S = 0.119, 0.017, 0.060
ROWS, SLOTS = 16, 8
ENGINES = ("one", "two")
ADAPTERS, TENANTS = 2048, 8
SPREAD, SAME_AGAIN = 2.2, 0.52
"""Lognormal popularity and how often the next request is for the same adapter: some 215 adapters in 1,000 requests."""

PAUSE_AFTER_REFUSAL_S = 2.0
TICK_S = 0.05


@dataclass(frozen=True, slots=True)
class Crowd:
    """So many clients that wait for their answers, or (0) requests that arrive by themselves."""

    clients: int = 0
    arrivals_rps: float = 0.0
    wait_s: float = 10.0
    seconds: float = 100.0
    warm_up_s: float = 20.0


@dataclass(slots=True)
class Seen:
    """What clients saw after the warm-up."""

    first_tokens_s: list[float] = field(default_factory=list[float])
    adapters: set[str] = field(default_factory=set[str])
    asked: int = 0
    refused: int = 0
    late: int = 0


@dataclass(slots=True, eq=False)
class _Sequence:
    request: Request
    tokens: int
    left: int
    is_counted: bool


@dataclass(slots=True)
class _Engine:
    running: list[_Sequence] = field(default_factory=list[_Sequence])
    waiting: deque[_Sequence] = field(default_factory=deque[_Sequence])
    is_busy: bool = False

    def next_step_s(self) -> float | None:
        """Fill the batch, as far as there are slots for adapters; how long the step takes. None: nothing to do."""
        kinds = {one.request.adapter for one in self.running}
        for one in list(self.waiting):
            if len(self.running) >= ROWS:
                break
            if one.request.adapter in kinds or len(kinds) < SLOTS:
                kinds.add(one.request.adapter)
                self.waiting.remove(one)
                self.running.append(one)
        if not self.running:
            return None
        prompts = sum(one.left == one.tokens for one in self.running)
        return STEP_S + ADAPTER_S * len(kinds) + PROMPT_S * prompts


class Run:
    """One run. Without rules, requests go to the engines by turns, at most `cap` at a time (0: no cap)."""

    def __init__(self, crowd: Crowd, seed: int, rules: LineRules | None = None, cap: int = 0) -> None:
        self._crowd, self._cap, self._random = crowd, cap, random.Random(seed)
        self._line = Line(rules) if rules else None
        self._engines = {name: _Engine() for name in ENGINES}
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = self._in_flight = 0
        self._sequences: dict[Request, _Sequence] = {}
        self._adapters = self._wanted()
        self.seen = Seen()

    def run(self) -> Seen:
        """Until the time is over."""
        crowd = self._crowd
        if self._line is not None:
            self._line.see(dict.fromkeys(ENGINES, ROWS))
            self._at(TICK_S, self._tick)
        if crowd.clients:
            for _ in range(crowd.clients):
                self._at(self._random.random(), self._ask)
        else:
            self._at(0.0, self._arrive)
        while self._events[0][0] <= crowd.seconds:
            now_s, _, happen = heapq.heappop(self._events)
            happen(now_s)
        return self.seen

    def _wanted(self) -> Iterator[int]:
        weights = [math.exp(self._random.gauss(0, SPREAD)) for _ in range(ADAPTERS)]
        last = 0
        while True:
            if self._random.random() >= SAME_AGAIN:
                (last,) = self._random.choices(range(ADAPTERS), weights)
            yield last

    def _at(self, when_s: float, happen: Callable[[float], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when_s, self._number, happen))

    def _arrive(self, now_s: float) -> None:
        self._ask(now_s)
        self._at(now_s + self._random.expovariate(self._crowd.arrivals_rps), self._arrive)

    def _ask(self, now_s: float) -> None:
        adapter, tokens = next(self._adapters), self._random.randint(8, 16)
        is_counted = now_s >= self._crowd.warm_up_s
        self.seen.asked += is_counted
        request = Request(
            f"t{adapter % TENANTS}", str(adapter), 1, now_s, now_s + self._crowd.wait_s, asked_tokens=tokens
        )
        self._sequences[request] = _Sequence(request, tokens, tokens, is_counted)
        if self._line is None:
            if self._cap and self._in_flight >= self._cap:
                self._refuse(request, now_s)
                return
            self._in_flight += 1
            request.engine = ENGINES[self._number % len(ENGINES)]
            self._send(request, now_s)
            return
        try:
            if self._line.arrive(request, dict.fromkeys(ENGINES, ROWS), now_s):
                self._send(request, now_s)
        except (QueueFull, WaitTooLong):
            self._refuse(request, now_s)

    def _refuse(self, request: Request, now_s: float) -> None:
        self.seen.refused += self._sequences.pop(request).is_counted
        if self._crowd.clients:
            self._at(now_s + PAUSE_AFTER_REFUSAL_S, self._ask)

    def _tick(self, now_s: float) -> None:
        assert self._line is not None
        for request in self._line.too_late(now_s):
            self.seen.late += self._sequences[request].is_counted
            self._refuse(request, now_s)
        self._at(now_s + TICK_S, self._tick)

    def _send(self, request: Request, now_s: float) -> None:
        self._engines[request.engine].waiting.append(self._sequences[request])
        self._step(request.engine, now_s)

    def _step(self, name: str, now_s: float) -> None:
        engine = self._engines[name]
        if not engine.is_busy and (took_s := engine.next_step_s()) is not None:
            engine.is_busy = True
            self._at(now_s + took_s, lambda end_s: self._stepped(name, end_s))

    def _stepped(self, name: str, now_s: float) -> None:
        engine = self._engines[name]
        engine.is_busy = False
        for one in list(engine.running):
            if one.left == one.tokens:
                self._started(one, now_s)
            one.left -= 1
            if not one.left:
                engine.running.remove(one)
                self._finished(one, now_s)
        if self._line is not None:
            while (following := self._line.next_for(name, now_s)) is not None:
                self._send(following, now_s)
        self._step(name, now_s)

    def _started(self, one: _Sequence, now_s: float) -> None:
        if self._line is not None:
            self._line.forecast.started(one.request, now_s)
        if one.is_counted:
            self.seen.first_tokens_s.append(now_s - one.request.arrived_s)
            self.seen.adapters.add(one.request.adapter)

    def _finished(self, one: _Sequence, now_s: float) -> None:
        del self._sequences[one.request]
        self._in_flight -= 1
        if self._line is not None:
            self._line.leave(one.request, now_s, one.tokens)
        if self._crowd.clients:
            self._at(now_s, self._ask)
