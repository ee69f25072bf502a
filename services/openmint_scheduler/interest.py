"""Who waits for which load: leases that their holders renew, and whose lapse is the cancellation."""

import heapq
from dataclasses import dataclass
from typing import Literal

from openmint.events.serving import LoadClass
from openmint_scheduler.messages import CLASS_RANKS, LoadKey

Ending = Literal["lapsed", "deadline"]


@dataclass(slots=True)
class Lease:
    """One waiter's interest: until `ends_s` unless it is renewed, and never beyond `deadline_s`."""

    load_class: LoadClass
    deadline_s: float
    ends_s: float


class InterestBook:
    """All leases, by what they are for."""

    def __init__(self, lapse_s: float) -> None:
        self._lapse_s = lapse_s
        self._leases: dict[LoadKey, dict[str, Lease]] = {}
        self._ends: list[tuple[float, LoadKey, str]] = []

    def renew(
        self, key: LoadKey, waiter: str, load_class: LoadClass, deadline_s: float, now_s: float, *, lapse_s: float = 0.0
    ) -> bool:
        """Take or extend a lease; True when this waiter had none. `lapse_s` replaces the usual time of a lease."""
        ends_s = min(now_s + (lapse_s or self._lapse_s), deadline_s)
        waiters = self._leases.setdefault(key, {})
        former = waiters.get(waiter)
        waiters[waiter] = Lease(load_class, deadline_s, ends_s)
        if former is None or ends_s < former.ends_s:
            heapq.heappush(self._ends, (ends_s, key, waiter))
        return former is None

    def is_held(self, key: LoadKey) -> bool:
        """True while somebody waits for it or uses it."""
        return key in self._leases

    def is_held_in(self, pools: tuple[str, ...], digest: str) -> bool:
        """The same for several pools at once."""
        if len(pools) == 1:  # Runs for every resident of an engine that needs room.
            return (pools[0], digest) in self._leases
        return any((pool, digest) in self._leases for pool in pools)

    def waiters(self, key: LoadKey) -> int:
        """How many hold a lease."""
        return len(self._leases.get(key, ()))

    def strongest(self, key: LoadKey) -> tuple[LoadClass, float] | None:
        """The best class and the earliest deadline among the leases, or None when there is none."""
        waiters = self._leases.get(key)
        if not waiters:
            return None
        if len(waiters) == 1:
            (lease,) = waiters.values()
            return lease.load_class, lease.deadline_s
        best = min(waiters.values(), key=lambda lease: CLASS_RANKS[lease.load_class])
        return best.load_class, min(lease.deadline_s for lease in waiters.values())

    def expire(self, now_s: float) -> tuple[list[LoadKey], list[tuple[LoadKey, Ending]]]:
        """Drop every lease that has ended: what lost some of its leases, and what lost its last one and why."""
        thinned: list[LoadKey] = []
        ended: list[tuple[LoadKey, Ending]] = []
        while self._ends and self._ends[0][0] <= now_s:
            _, key, waiter = heapq.heappop(self._ends)
            waiters = self._leases.get(key)
            lease = waiters.get(waiter) if waiters else None
            if waiters is None or lease is None:
                continue
            if lease.ends_s > now_s:
                heapq.heappush(self._ends, (lease.ends_s, key, waiter))
                continue
            del waiters[waiter]
            if waiters:
                thinned.append(key)
            else:
                del self._leases[key]
                ended.append((key, "deadline" if lease.deadline_s <= now_s else "lapsed"))
        return thinned, ended

    def release(self, key: LoadKey, waiter: str) -> None:
        """End one waiter's lease; its end is not told by `expire`."""
        waiters = self._leases.get(key)
        if waiters is not None:
            waiters.pop(waiter, None)
            if not waiters:
                del self._leases[key]

    def drop(self, key: LoadKey) -> None:
        """Forget everybody who waits for this: they were answered."""
        self._leases.pop(key, None)

    def keys(self) -> list[LoadKey]:
        """Everything that anybody waits for or uses."""
        return list(self._leases)
