"""Who goes next to an engine: the requests of one base and pool in one gateway process. No I/O, no clock, no chance.

Engines pull: a request goes straight through while an engine that can answer it has room; else it waits, bounded, and
`next_for` is asked when room appears. Tenants take weighted turns. An engine runs at most `coherent_adapters` different
adapters of ours, because each further one makes its steps longer, or would wait inside for a slot; adapters take turns
too: when one has waited for its turn, running ones get nothing more until they have drained and made way.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush

from openmint_gateway.forecast import Bounds, Forecast
from openmint_gateway.seats import EngineSeat, Request
from openmint_gateway.tenant_queues import TenantQueues

FAIR_SLACK = 32.0
"""How many mean requests tenants together may get ahead of the one whose turn it is, so that an engine stays full of
the adapters it runs: two batches."""

MAX_CLOSING = 4
"""Adapters that make way on an engine at a time: more would leave a batch half empty."""

SHORT_WORK = 16.0
"""Generated tokens that an adapter has to do on an engine: with less, all of them may end in one step, and the engine
would run dry before more could come. Such an engine gets the adapters of its next batch beside those of this one."""

MIN_TENURE = 4
"""Sequences that an adapter gets before it makes way."""


@dataclass(frozen=True, slots=True)
class LineRules:
    """What can be set. Every part can be taken away by itself."""

    margin: int = 2
    default_running: int = 16
    coherent_adapters: int = 8
    """0: no limit."""
    adapter_turns: bool = True
    deadline_order: bool = True
    turn_share: float = 0.1
    """An adapter's turn has come when its first request has waited for this part of what it may wait."""
    bounds: Bounds = field(default_factory=Bounds)


class Line:
    """Give it what happens; ask `next_for` where room appears."""

    def __init__(self, rules: LineRules, weights: Mapping[str, float] | None = None) -> None:
        self.rules = rules
        self.engines: dict[str, EngineSeat] = {}
        self.queues = TenantQueues(self.engines, weights or {}, by_deadline=rules.deadline_order)
        self.forecast = Forecast(rules.bounds, self.queues, self.engines)
        self.picks: Counter[str] = Counter()
        """How requests came to engines: `straight`, by `turn` of their adapter, in `order`."""
        self._mean_cost = 1.0
        self._number = 0
        self._deadlines: list[tuple[float, int, Request]] = []

    @property
    def waiting(self) -> int:
        """How many wait, for a load or for room."""
        return self.queues.queued + self.forecast.loading

    def see(self, engines: Mapping[str, int]) -> None:
        """These engines of the pool live, with so many sequences in a step each (0: not told)."""
        for name, running in engines.items():
            self._see_one(name, running)
        for name, seat in list(self.engines.items()):
            if name not in engines:
                seat.is_alive = False
                if not seat.sequences and not seat.backlog:
                    del self.engines[name]

    def arrive(self, request: Request, engines: Mapping[str, int], now_s: float) -> bool:
        """Take in a request whose adapter answers on these engines (as in `see`); none: it must be loaded first.

        True when it goes straight to `request.engine`; False when it waits. Raises: QueueFull, WaitTooLong, at once.
        """
        self._number += 1
        request.number = self._number
        self.queues.estimate(request)
        for name, running in engines.items():
            if name not in self.engines:
                self._see_one(name, running)
        if self._went_straight(request, engines, now_s):
            return True
        self.forecast.judge(request, engines)
        self._wait(request, engines, now_s)
        return False

    def resident(self, request: Request, engines: Mapping[str, int], now_s: float) -> bool:
        """The adapter of a loading request answers now. As `arrive`, without a verdict."""
        self._end_load(request)
        for name, running in engines.items():
            if name not in self.engines:
                self._see_one(name, running)
        if self._went_straight(request, engines, now_s):
            return True
        self._wait(request, engines, now_s)
        return False

    def unplaced(self, request: Request, now_s: float) -> None:
        """No engine has the adapter of this queued request any more: it must be loaded again."""
        self.queues.take(request, now_s)
        self._wait(request, (), now_s)

    def sent_back(self, request: Request, engines: Collection[str], now_s: float, *, is_busy: bool) -> bool:
        """The engine did nothing for a running request: it was busy, or is to be avoided. As `resident`.

        It keeps its place in its tenant's queue. Without an engine that is left it is loading.
        """
        seat = self.engines[request.engine]
        seat.take(request, now_s)
        self.queues.refund(request)
        if is_busy:
            seat.pause(request.tenant, now_s)
        else:
            request.avoided.add(request.engine)
        left = [engine for engine in engines if engine not in request.avoided]
        if self._went_straight(request, left, now_s):
            return True
        if not left:
            request.avoided.clear()
        self._wait(request, engines if left else (), now_s)
        return False

    def accepted(self, request: Request) -> None:
        """Its engine has taken it."""
        seat = self.engines.get(request.engine)
        if seat is not None and seat.pauses:
            seat.accepted(request)

    def leave(self, request: Request, now_s: float, tokens: int | None = None) -> None:
        """It is over, wherever it is. `tokens`: the engine has ended it by itself, after so many."""
        match request.state:
            case "loading":
                self._end_load(request)
            case "waiting":
                self.queues.take(request, now_s)
            case "running":
                seat = self.engines[request.engine]
                if tokens is not None:
                    seat.pace.finished(self.queues.settle(request, tokens), now_s - request.sent_s)
                seat.take(request, now_s)
            case "new" | "gone":
                pass
        request.state = "gone"

    def next_for(self, engine: str, now_s: float) -> Request | None:
        """The request that this engine gets now; it counts as sent. None without room, or without anybody for it."""
        seat = self.engines.get(engine)
        if seat is None or not seat.is_alive or not seat.backlog or seat.sequences >= seat.limit:
            return None
        found = self._pick(engine, seat, now_s)
        if found is None or not seat.has_room(found[0].sequences):
            return None  # The room is kept for one that is larger: smaller ones must not pass it for ever.
        request, how = found
        self.queues.take(request, now_s)
        self._send(request, engine, now_s, how)
        self.forecast.was_in_time()
        return request

    def too_late(self, now_s: float) -> list[Request]:
        """Queued requests that can't have their first token in time any more; they are out of the line."""
        late: list[Request] = []
        while self._deadlines and self._deadlines[0][0] - self.forecast.start_s <= now_s:
            request = heappop(self._deadlines)[2]
            if request.state == "waiting":
                self.forecast.was_too_late()
                self.leave(request, now_s)
                late.append(request)
        return late

    def _see_one(self, name: str, running: int) -> None:
        limit = (running or self.rules.default_running) + self.rules.margin
        seat = self.engines.get(name)
        if seat is None:
            self.engines[name] = EngineSeat(limit)
        else:
            seat.limit, seat.is_alive = limit, True

    def _went_straight(self, request: Request, engines: Collection[str], now_s: float) -> bool:
        """Send it at once where there is room, to the engine with the least work."""
        free = [
            (seat.cost, name)
            for name in engines
            if (seat := self.engines.get(name)) is not None
            and name not in request.avoided
            and seat.has_room(request.sequences)
            and self._may_go(request, seat)
            and not seat.is_paused(request.tenant, now_s)
            # A newcomer overtakes nobody who could go there.
            and (not seat.backlog or self._pick(name, seat, now_s) is None)
        ]
        if free:
            self._send(request, min(free)[1], now_s, "straight")
        return bool(free)

    def _pick(self, engine: str, seat: EngineSeat, now_s: float) -> tuple[Request, str] | None:
        """Tenants by turns; of one tenant an adapter whose turn has come, then by order.

        An engine that runs as many adapters as it may gets more of those alone, from tenants that are not too far
        ahead of the first.
        """
        is_open = self._is_open(seat)
        waiting = self.queues.by_turns()
        slack = FAIR_SLACK * self._mean_cost / max(1, len(waiting))
        ceiling = math.inf
        for turn, name in waiting:
            if turn > ceiling:
                return None
            if seat.is_paused(name, now_s):
                continue
            heads = self.queues.heads(name, engine)
            if not heads:
                continue
            due = [head for head in heads if self._is_due(head, now_s)] if self.rules.adapter_turns else []
            if not is_open:
                self._make_way(seat, due)
                heads, due = seat.only_fed(heads), seat.only_fed(due)
            if heads:
                how = "turn" if due else "order"
                return min(due or heads, key=self.queues.order), how
            ceiling = min(ceiling, turn + slack)
        return None

    def _is_open(self, seat: EngineSeat) -> bool:
        most, held = self.rules.coherent_adapters, len(seat.adapters)
        return not most or held < most or (held < 2 * most and seat.cost < SHORT_WORK * held)

    def _may_go(self, request: Request, seat: EngineSeat) -> bool:
        adapter = request.adapter
        return not adapter or (adapter not in seat.closing and (adapter in seat.adapters or self._is_open(seat)))

    def _make_way(self, seat: EngineSeat, due: list[Request]) -> None:
        """Let running adapters drain for those whose turn has come: first what has the least there."""
        wanted = sum(bool(head.adapter) and head.adapter not in seat.adapters for head in due)
        while len(seat.closing) < min(wanted, MAX_CLOSING):
            served = [name for name in seat.adapters if name not in seat.closing and seat.tenures[name] >= MIN_TENURE]
            if not served:
                return
            seat.closing.add(min(served, key=lambda name: (seat.adapters[name], name)))

    def _is_due(self, head: Request, now_s: float) -> bool:
        return now_s - head.arrived_s >= self.rules.turn_share * head.may_wait_s

    def _wait(self, request: Request, engines: Collection[str], now_s: float) -> None:
        if engines:
            request.state = "waiting"
            heappush(self._deadlines, (request.deadline_s, request.number, request))
            self.queues.put(request, engines, now_s)
        else:
            request.state = "loading"
            self.forecast.loading += 1
            self.forecast.loading_cost += request.cost
            self.queues.count(request)

    def _end_load(self, request: Request) -> None:
        forecast = self.forecast
        forecast.loading -= 1
        forecast.loading_cost = forecast.loading_cost - request.cost if forecast.loading else 0.0
        self.queues.discount(request)

    def _send(self, request: Request, engine: str, now_s: float, how: str) -> None:
        self.queues.charge(request)
        self._mean_cost += 0.02 * (request.cost - self._mean_cost)
        request.state, request.engine, request.sent_s = "running", engine, now_s
        self.engines[engine].put(request, now_s)
        self.picks[how] += 1
