"""The only clock of a simulated fleet: things to do, in the order of their times."""

import heapq
from collections.abc import Callable
from typing import Any


class Timeline:
    """`now_s` jumps from one thing to the next. Things due at the same time happen in the order they were planned."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._planned = 0

    def after(self, delay_s: float, act: Callable[..., object], *arguments: Any) -> None:
        """Plan `act(*arguments)`; not to be undone, so `act` checks whether it still matters."""
        self._planned += 1
        heapq.heappush(self._due, (self.now_s + delay_s, self._planned, act, arguments))

    def run(self, until_s: float) -> None:
        """Do everything that is due up to and including `until_s`."""
        due = self._due
        while due and due[0][0] <= until_s:
            self.now_s, _, act, arguments = heapq.heappop(due)
            act(*arguments)
        self.now_s = until_s
