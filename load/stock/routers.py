"""Routers in front of stock servers. The choosers run inside the client: they cost their peers no extra hop.

Each may have a cap: with so many calls in flight over all servers the next one is refused with 429 at once.
"""

import itertools
import time
from collections import Counter, OrderedDict
from typing import Protocol

from load.clients.records import Call, Outcome
from load.stack.policies import Policy
from load.stock.stock_engine import StockEngine, StockEngines


class Chooser(Protocol):
    """Picks a server for a policy."""

    def choose(self, policy: Policy, in_flight: Counter[str]) -> StockEngine:
        """The server that this call goes to; `in_flight` counts calls by server name."""
        ...


class RoutedStock:
    """Stock servers behind one chooser: a `Target`."""

    def __init__(self, name: str, stock: StockEngines, chooser: Chooser, cap: int | None = None) -> None:
        self.name = name if cap is None else f"{name}, cap {cap}"
        self._stock, self._chooser, self._cap = stock, chooser, cap
        self._in_flight: Counter[str] = Counter()

    async def ask(self, call: Call, scheduled_s: float | None = None) -> Outcome:
        """Choose and ask, or refuse."""
        if self._cap is not None and self._in_flight.total() >= self._cap:
            return _refused(call, scheduled_s)
        engine = self._chooser.choose(call.policy, self._in_flight)
        self._in_flight[engine.name] += 1
        try:
            return await engine.ask(self._stock.session, call, scheduled_s)
        finally:
            self._in_flight[engine.name] -= 1


class _RoundRobin:
    def __init__(self, stock: StockEngines) -> None:
        self._turns = itertools.cycle(stock.engines)

    def choose(self, policy: Policy, in_flight: Counter[str]) -> StockEngine:
        return next(self._turns)


class _PreferLoaded:
    """Servers that have the adapter first, the least busy of them; without one, the least busy of all.

    What a server has is what was sent there last, up to its capacity: the list that Ray Serve's replicas tell.
    """

    def __init__(self, stock: StockEngines) -> None:
        self._engines = stock.engines
        self._capacity = stock.limits.capacity
        self._loaded: dict[str, OrderedDict[Policy, None]] = {e.name: OrderedDict() for e in stock.engines}

    def choose(self, policy: Policy, in_flight: Counter[str]) -> StockEngine:
        having = [engine for engine in self._engines if policy in self._loaded[engine.name]]
        chosen = min(having or self._engines, key=lambda engine: (in_flight[engine.name], engine.name))
        loaded = self._loaded[chosen.name]
        loaded[policy] = None
        loaded.move_to_end(policy)
        if len(loaded) > self._capacity:
            loaded.popitem(last=False)
        return chosen


def round_robin(stock: StockEngines, cap: int | None = None) -> RoutedStock:
    """Servers by turns."""
    return RoutedStock("stock, round-robin", stock, _RoundRobin(stock), cap)


def prefer_loaded(stock: StockEngines, cap: int | None = None) -> RoutedStock:
    """A server that has the adapter, else the least busy, as Ray Serve does for models that share a replica."""
    return RoutedStock("stock, prefer-loaded", stock, _PreferLoaded(stock), cap)


def _refused(call: Call, scheduled_s: float | None) -> Outcome:
    now_s = time.monotonic()
    wanted_s = now_s if scheduled_s is None else scheduled_s
    return Outcome(call, wanted_s, now_s, None, now_s, (), 0, 429, error="overloaded: the router's cap")
