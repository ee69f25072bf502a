"""What is counted in a night, from its counted beginning on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from load.fleet.engine import FleetEngine, Request

RETURN_S = 60.0
"""A load that brings back what was evicted within so long is churn."""

MIN_ASKED = 100
"""Answers of a policy below which it has no 99th percentile."""


@dataclass(frozen=True, slots=True)
class NightFigures:
    """The figures of one way. Waits are from the request to the moment its engine begins with it."""

    requests: int
    answered: int
    failed: int
    cut_off: int
    loads_per_1000: float
    hit_rate: float
    evictions_per_1000: float
    churn: float
    """Of the loads, the share that brought back what had been evicted less than RETURN_S before."""
    busiest_over_mean: float
    """Requests answered by the engine that answered most, over the mean of all."""
    wait_p50_s: float
    wait_p99_s: float
    worst_policy_p99_s: float
    """The largest 99th percentile of waits among policies with MIN_ASKED answers or more."""
    distinct_policies: int


class Tally:
    """Counts; `begin` and `end` are called by the night."""

    def __init__(self, policies: int, requests: int, counted_from_s: float) -> None:
        self.cut_off = 0
        self._counted_from_s = counted_from_s
        self._asked = 0
        self._hits = 0
        self._failed = 0
        self._loads = 0
        self._evictions = 0
        self._returned = 0
        self._evicted_s: dict[str, float] = {}
        self._policies = np.zeros(requests, np.int64)
        self._waits_s = np.zeros(requests, np.float64)
        self._answers = 0
        self._is_counting = False
        self._at_begin: dict[str, int] = {}
        self._at_end: dict[str, int] = {}

    def begin(self, engines: Sequence[FleetEngine]) -> None:
        """From now on it counts."""
        self._is_counting = True
        self.cut_off = 0
        self._at_begin = {engine.name: engine.answered for engine in engines}

    def end(self, engines: Sequence[FleetEngine]) -> None:
        """The night is over."""
        self._at_end = {engine.name: engine.answered for engine in engines if engine.is_alive}

    def asked(self, *, is_hit: bool) -> None:
        """A request came for the first time; its revision was on an engine that took it, or was not."""
        if self._is_counting:
            self._asked += 1
            self._hits += is_hit

    def answered(self, request: Request) -> None:
        """A request is done."""
        if request.asked_s >= self._counted_from_s:
            self._policies[self._answers] = request.policy
            self._waits_s[self._answers] = request.began_s - request.asked_s
            self._answers += 1

    def failed(self) -> None:
        """A request got an error or a refusal."""
        self._failed += self._is_counting

    def loaded(self, digest: str, now_s: float) -> None:
        """An adapter was attached."""
        if self._is_counting:
            self._loads += 1
            self._returned += now_s - self._evicted_s.get(digest, -RETURN_S) < RETURN_S

    def evicted(self, digest: str, now_s: float) -> None:
        """An adapter was taken off."""
        self._evicted_s[digest] = now_s
        self._evictions += self._is_counting

    def figures(self) -> NightFigures:
        """Everything, once the night is over."""
        waits_s, policies = self._waits_s[: self._answers], self._policies[: self._answers]
        shares = np.array([self._at_end[name] - self._at_begin.get(name, 0) for name in self._at_end], np.float64)
        thousands = max(1, self._asked) / 1000
        return NightFigures(
            requests=self._asked,
            answered=self._answers,
            failed=self._failed,
            cut_off=self.cut_off,
            loads_per_1000=self._loads / thousands,
            hit_rate=self._hits / max(1, self._asked),
            evictions_per_1000=self._evictions / thousands,
            churn=self._returned / max(1, self._loads),
            busiest_over_mean=float(shares.max() / shares.mean()),
            wait_p50_s=float(np.quantile(waits_s, 0.5)),
            wait_p99_s=float(np.quantile(waits_s, 0.99)),
            worst_policy_p99_s=self._worst_p99_s(),
            distinct_policies=len(np.unique(policies)),
        )

    def _worst_p99_s(self) -> float:
        waits_s, policies = self._waits_s[: self._answers], self._policies[: self._answers]
        order = np.argsort(policies, kind="stable")
        _, starts, counts = np.unique(policies[order], return_index=True, return_counts=True)
        often = counts >= MIN_ASKED
        return max(
            (float(np.quantile(waits_s[order[start : start + count]], 0.99))
             for start, count in zip(starts[often], counts[often], strict=True)),
            default=0.0,
        )  # fmt: skip
