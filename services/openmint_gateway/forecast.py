"""How long a newcomer would wait, and whether to tell it so instead of letting it wait in vain. No I/O, no clock.

The work ahead is what the newcomer's tenant has waiting, at that tenant's share of its engines' measured pace: what
others have waiting delays nobody but them, so that a flood is refused first where it comes from. Turns of adapters and
new arrivals make the true wait longer or shorter; how much longer is learned from those that came too late.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from openmint_gateway.problems import QueueFull, WaitTooLong
from openmint_gateway.seats import EngineSeat, Request
from openmint_gateway.tenant_queues import TenantQueues

MAX_RETRY_AFTER_S = 600.0
MAX_CAUTION = 4.0
CAUTION_UP = 1.1
CAUTION_DOWN = 0.996
"""In balance one in twenty-five of those who waited came too late at most; mostly none does."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may wait."""

    per_tenant: int = 256
    in_all: int = 2048
    is_verdict_early: bool = True
    verdict_share: float = 0.4
    """An expected wait is accepted up to this part of what the request may wait: turns of adapters make some wait more
    than twice as long as others, and a short queue answers as many, sooner."""


class Forecast:
    """Expected waits, and verdicts on them."""

    def __init__(self, bounds: Bounds, queues: TenantQueues, engines: Mapping[str, EngineSeat]) -> None:
        self.loading = 0
        self.loading_cost = 0.0
        self.start_s = 0.0
        """What usually passes between sending a request and its first token."""
        self.caution = 1.0
        self._bounds = bounds
        self._queues = queues
        self._engines = engines

    def judge(self, request: Request, engines: Collection[str]) -> None:
        """Refuse what can't be answered in time. Raises: QueueFull, WaitTooLong."""
        tenant = self._queues.tenants.get(request.tenant)
        waiting = tenant.waiting if tenant else 0
        in_all = self._queues.queued + self.loading
        expected_s = self.expected_wait_s(request, engines)
        later_s = min(MAX_RETRY_AFTER_S, max(1.0, expected_s))
        if waiting >= self._bounds.per_tenant:
            raise QueueFull(f"{waiting} requests of tenant {request.tenant} are waiting already", retry_after_s=later_s)
        if in_all >= self._bounds.in_all:
            raise QueueFull(f"{in_all} requests are waiting already", retry_after_s=later_s)
        if self._bounds.is_verdict_early and expected_s > request.may_wait_s * self._bounds.verdict_share:
            raise WaitTooLong(
                f"the wait would be about {expected_s:.1f} s, and this request waits for {request.may_wait_s:.1f} s",
                retry_after_s=later_s,
            )

    def expected_wait_s(self, request: Request, engines: Collection[str] = ()) -> float:
        """Until the first token of a newcomer; 0 while the pace of engines is not known.

        `engines` are those with its adapter; none stands for all, for it may be loaded anywhere.
        """
        alive = [name for name, seat in self._engines.items() if seat.is_alive]
        reachable = [name for name in engines if name in self._engines] or alive
        rate = self._rate(reachable)
        if not rate:
            return 0.0
        ahead = sum(self._engines[name].backlog for name in reachable)
        free = sum(max(0, self._engines[name].limit - self._engines[name].sequences) for name in alive)
        if not ahead and self.loading < free:
            return self.start_s  # Engines stand idle: what is loading finds room side by side.
        ahead += self.loading_cost * len(reachable) / max(1, len(alive))
        return self._own_part(request) * ahead / rate * self.caution + self.start_s

    def started(self, request: Request, now_s: float) -> None:
        """Its first token has come."""
        self.start_s += 0.1 * (now_s - request.sent_s - self.start_s)

    def was_in_time(self) -> None:
        """One that waited was sent in time."""
        self.caution = max(1.0, self.caution * CAUTION_DOWN)

    def was_too_late(self) -> None:
        """One that was accepted could not be answered in time."""
        self.caution = min(MAX_CAUTION, self.caution * CAUTION_UP)

    def _own_part(self, request: Request) -> float:
        """The work done until the newcomer's turn, over all that waits, when tenants get their shares."""
        mine = self._queues.tenants.get(request.tenant)
        weight = mine.weight if mine else self._queues.weight(request.tenant)
        own = (mine.waiting_cost if mine else 0.0) + request.cost
        total, weights = 0.0, 0.0 if mine and mine.waiting else weight
        for tenant in self._queues.tenants.values():
            if tenant.waiting:
                total += tenant.waiting_cost
                weights += tenant.weight
        return own * weights / weight / total if total else 1.0

    def _rate(self, engines: Collection[str]) -> float | None:
        """Of these engines together; one that has shown nothing yet counts as the mean of the others."""
        known = [rate for seat in self._engines.values() if (rate := seat.pace.rate()) is not None]
        if not known:
            return None
        mean = sum(known) / len(known)
        seats = [self._engines[name] for name in engines]
        return sum((seat.pace.rate() or mean) for seat in seats if seat.is_alive) or None
