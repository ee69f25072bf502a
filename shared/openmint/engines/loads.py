"""Waiting for a cold load: one shared wait per (base, pool, digest) in a process, whoever asks.

The first waiter publishes `load.requested`; while anybody waits the interest is renewed, with the best class and the
latest deadline of those who wait; when nobody does, the renewals stop and the scheduler drops the load. The answer is
the residency view's, or `load.failed`.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from uuid import UUID

import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from pydantic import ValidationError

from openmint.bus.connection import Bus
from openmint.clock import Clock, WallClock
from openmint.engines.residency import Placement, ResidencyView
from openmint.engines.resident_list import HostLists
from openmint.errors import (
    BadAdapter,
    BusUnavailable,
    LoadFailed,
    LoadTimeout,
    NoEngine,
    OpenmintError,
    Overloaded,
    Quarantined,
)
from openmint.events import LoadFailed as LoadFailedFact
from openmint.events import LoadRequested
from openmint.events.serving import RELEASE_DEADLINE_S, SERVE_POOL, LoadClass
from openmint.identifiers import new_id
from openmint.tracing import begin, current_traceparent

log = structlog.get_logger()

RENEW_EVERY_S = 2.0
"""The scheduler gives up after three of these and a second."""

OWN_DEADLINE_SLACK_S = 0.5
"""A load's deadline is its last waiter's, as the scheduler last heard it; so much later it may be told of."""

NO_ENGINE_PATIENCE_S = 3.0
"""An engine tells of itself every second; a view that has just started must hear it before it says there is none."""

REPUBLISH_EVERY_S = 10.0
"""A renewal is a request to a leader that has none; the command itself is published again this often, should the bus
have lost it together with every renewal."""

MAX_DEADLINE_S = 3600.0
"""A lease has no end of its own: an hour from each renewal."""

_CLASS_ORDER: tuple[LoadClass, ...] = ("interactive", "rollout", "evaluation", "prefetch")


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """Which revision is wanted where, by whom."""

    base: str
    tenant: str
    policy: str
    revision_id: UUID
    digest: str
    rank: int
    adapter_bytes: int
    pool: str = SERVE_POOL
    load_class: LoadClass = "interactive"


@dataclass(slots=True)
class _SharedWait:
    """Everybody in this process who waits for one load. `answer` resolves for all of them; the load is part of the
    trace of the first."""

    order: LoadOrder
    answer: asyncio.Future[Placement]
    traceparent: str | None = None
    waiting: dict[int, tuple[LoadClass, float]] = field(default_factory=dict[int, tuple[LoadClass, float]])
    renewal: asyncio.Task[None] | None = None
    is_dropped: bool = False
    """The scheduler has given the load up for an earlier request's deadline, and must be asked again."""

    @property
    def ends_s(self) -> float:
        """When the last of them gives up."""
        return max((ends_s for _, ends_s in self.waiting.values()), default=0.0)


class LoadWaiter:
    """Asks the scheduler for loads. `start` it, `close` it; the view must be started too."""

    def __init__(self, bus: Bus, view: ResidencyView, name: str = "", clock: Clock | None = None) -> None:
        self._bus = bus
        self._view = view
        self._name = name or new_id().hex
        self._clock = clock or WallClock()
        self._waits: dict[tuple[str, str, str], _SharedWait] = {}
        self._subscription: Subscription | None = None
        self._tickets = 0
        self._releases: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen to failures."""
        self._subscription = await self._bus.nc.subscribe(LoadFailedFact.subject_filter(), cb=self._on_failed_message)

    async def close(self) -> None:
        """Stop listening and renewing; who still waits gets BusUnavailable."""
        if self._subscription is not None and self._bus.nc.is_connected:
            await self._subscription.unsubscribe()
        for wait in list(self._waits.values()):
            _settle(wait.answer, BusUnavailable("this process is stopping"))

    async def ensure_resident(self, order: LoadOrder, deadline_s: float) -> Placement:
        """Where the revision answers, loading it if need be, within `deadline_s` seconds from now.

        Cancelling is safe: a load that nobody waits for any more lapses.
        Raises: LoadTimeout, LoadFailed, Overloaded, NoEngine, BusUnavailable.
        """
        placements = self._view.engines_with(order.base, order.pool, order.digest)
        if placements:
            return placements[0]
        ends_s = self._clock.monotonic_s() + deadline_s
        async with self._waiting(order, ends_s) as (wait, _):
            return await _answer_of(wait, deadline_s)

    @contextlib.asynccontextmanager
    async def lease(self, order: LoadOrder, deadline_s: float) -> AsyncGenerator[Placement]:
        """A placement that is kept for as long as the block lasts: the scheduler does not evict what is leased.

        The engine may still die; then its requests fail and the lease may be taken again. Raises as ensure_resident.
        """
        placements = self._view.engines_with(order.base, order.pool, order.digest)
        ends_s = None if placements else self._clock.monotonic_s() + deadline_s
        async with self._waiting(order, ends_s) as (wait, ticket):
            placement = placements[0] if placements else await _answer_of(wait, deadline_s)
            # From now on it is used, without a gap in which it could be evicted.
            for counted in (wait, self._waits.get((order.base, order.pool, order.digest))):
                if counted is not None and ticket in counted.waiting:
                    counted.waiting[ticket] = (order.load_class, float("inf"))
            yield placement

    @contextlib.asynccontextmanager
    async def _waiting(self, order: LoadOrder, ends_s: float | None) -> AsyncGenerator[tuple[_SharedWait, int]]:
        """Count as one of those who wait; `ends_s` None for one who uses what he waited for."""
        key = (order.base, order.pool, order.digest)
        wait = self._waits.get(key)
        if wait is None or (ends_s is not None and wait.answer.done()):
            former = wait
            wait = _SharedWait(order, asyncio.get_running_loop().create_future(), current_traceparent.get())
            if former is not None:
                wait.waiting |= former.waiting
            self._waits[key] = wait
            wait.renewal = asyncio.create_task(self._renew(key, wait))
        elif ends_s is not None and wait.traceparent:
            begin("load.joined", joined=wait.traceparent).end()
        self._tickets += 1
        ticket = self._tickets
        wait.waiting[ticket] = (order.load_class, float("inf") if ends_s is None else ends_s)
        try:
            yield wait, ticket
        finally:
            present = self._waits.get(key)
            for counted in (wait, present):
                if counted is not None:
                    counted.waiting.pop(ticket, None)
            if present is not None and not present.waiting:
                del self._waits[key]
                if present.renewal is not None:
                    present.renewal.cancel()
                self._release(present)

    async def _renew(self, key: tuple[str, str, str], wait: _SharedWait) -> None:
        """Publish the request, then renew the interest, until nobody waits (then this task is cancelled)."""
        started_s = self._clock.monotonic_s()
        arrival = self._view.index.expect(key)
        arrival.add_done_callback(lambda done: None if done.cancelled() else _settle(wait.answer, done.result()))
        published_s: float | None = None
        failed_at = 0
        try:
            while self._waits.get(key) is wait:
                now_s = self._clock.monotonic_s()
                placements = self._view.engines_with(*key)
                if placements:
                    _settle(wait.answer, placements[0])
                elif now_s - started_s > NO_ENGINE_PATIENCE_S and not self._view.has_engine(*key[:2]):
                    detail = f"no engine of pool {wait.order.pool} for base model {wait.order.base} is alive"
                    _settle(wait.answer, NoEngine(detail, retry_after_s=5.0))
                request = self._request(wait, now_s)
                is_late = published_s is None or now_s - published_s > REPUBLISH_EVERY_S
                is_request = not placements and (is_late or wait.is_dropped)
                try:
                    if is_request:
                        await self._bus.publish_command(request, request.load_subject())
                        published_s, wait.is_dropped = now_s, False
                    else:
                        await self._bus.publish_core(request.interest_subject(), request)
                except (OpenmintError, ConnectionError, TimeoutError) as error:
                    failed_at += 1
                    log.warning("load.not_published", revision=wait.order.digest, tries=failed_at, detail=str(error))
                await self._clock.sleep(RENEW_EVERY_S)
        finally:
            arrival.cancel()

    def _release(self, wait: _SharedWait) -> None:
        """Say that nobody waits any more; if that is lost, the lease runs out by itself."""
        request = self._request(wait, self._clock.monotonic_s())

        async def tell() -> None:
            with contextlib.suppress(OpenmintError, ConnectionError, TimeoutError):
                await self._bus.publish_core(request.interest_subject(), request)

        task = asyncio.create_task(tell())
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    def _request(self, wait: _SharedWait, now_s: float) -> LoadRequested:
        order = wait.order
        classes = {load_class for load_class, _ in wait.waiting.values()} or {order.load_class}
        latest_s = max((ends_s for _, ends_s in wait.waiting.values()), default=now_s)
        return LoadRequested(
            base=order.base,
            pool=order.pool,
            tenant=order.tenant,
            policy=order.policy,
            revision_id=order.revision_id,
            digest=order.digest,
            rank=order.rank,
            adapter_bytes=order.adapter_bytes,
            load_class=next(load_class for load_class in _CLASS_ORDER if load_class in classes),
            waiter=f"{self._name}-{order.pool}-{order.digest[7:23]}",
            deadline_s=min(MAX_DEADLINE_S, max(RELEASE_DEADLINE_S, latest_s - now_s)),
        )

    async def _on_failed_message(self, message: Msg) -> None:
        try:
            fact = LoadFailedFact.model_validate_json(message.data)
        except ValidationError as error:
            log.warning("load.unreadable", subject=message.subject, detail=str(error)[:300])
            return
        wait = self._waits.get((fact.base, fact.pool, fact.digest))
        if wait is None:
            return
        if fact.cause.code == LoadTimeout.code and wait.ends_s > self._clock.monotonic_s() + OWN_DEADLINE_SLACK_S:
            # Told of a deadline that was another's, who gave up as this one came.
            wait.is_dropped = True
            return
        _settle(wait.answer, error_of(fact))


@contextlib.asynccontextmanager
async def watching_engines(bus: Bus, read_key: str, name: str = "") -> AsyncGenerator[tuple[ResidencyView, LoadWaiter]]:
    """A started view of where adapters are, and a waiter over it, until the block ends.

    `read_key` opens the engines' resident lists; `name` is how the waiter calls itself.
    """
    view = ResidencyView(HostLists(read_key))
    await view.start(bus)
    try:
        waiter = LoadWaiter(bus, view, name)
        await waiter.start()
        try:
            yield view, waiter
        finally:
            await waiter.close()
    finally:
        await view.close()


async def _answer_of(wait: _SharedWait, deadline_s: float) -> Placement:
    try:
        async with asyncio.timeout(deadline_s):
            return await asyncio.shield(wait.answer)
    except TimeoutError as error:
        order = wait.order
        what = f"{order.tenant}/{order.policy} ({order.digest[:19]}…)"
        raise LoadTimeout(f"{what} was not resident within {deadline_s:.1f} s", retry_after_s=2.0) from error


def error_of(fact: LoadFailedFact) -> OpenmintError:
    """What a waiter raises for a load that failed."""
    detail = fact.cause.detail
    kinds: dict[str, type[OpenmintError]] = {
        "overloaded": Overloaded,
        "load_timeout": LoadTimeout,
        "no_engine": NoEngine,
        "quarantined": Quarantined,
    }
    kind = kinds.get(fact.cause.code, LoadFailed)
    if fact.cause.code == BadAdapter.code:
        detail = f"the adapter must not be loaded: {detail}"
    return kind(detail, retry_after_s=fact.retry_after_s)


def _settle(answer: asyncio.Future[Placement], outcome: Placement | OpenmintError) -> None:
    if answer.done():
        return
    if isinstance(outcome, OpenmintError):
        answer.set_exception(outcome)
        answer.exception()  # Somebody may have left before; that is not an error to report.
    else:
        answer.set_result(outcome)
