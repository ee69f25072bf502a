"""The scheduler of one base model on the bus: stands by, leads, and steps back.

Everything it knows while it leads is soft: engines tell what they hold, waiters renew their interest every two
seconds, and recent alias moves are read from their stream. So taking over is starting empty.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import orjson
import structlog
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.errors import APIError
from pydantic import ValidationError

from openmint.bus.connection import Bus
from openmint.bus.dead_letters import bury
from openmint.bus.messages import RawMessage, decode_raw
from openmint.bus.provision import ensure_load_consumer
from openmint.bus.tail import tail
from openmint.clock import Clock
from openmint.endings import end
from openmint.engines.scheduler_view import EVERY_LEADER, SchedulerQuery, query_subject
from openmint.errors import CallerMistake, OpenmintError
from openmint.events import AdapterCondemned, AliasMoved, Cause, EngineHeartbeat, EngineLeft, LoadFailed, LoadRequested
from openmint.tracing import TRACEPARENT
from openmint_scheduler import handlers, metrics
from openmint_scheduler.conductor import Conductor, EngineFactory, TimeLimits
from openmint_scheduler.core import LoaderScheduler
from openmint_scheduler.leadership import Lead, try_to_lead
from openmint_scheduler.load_traces import LoadTraces
from openmint_scheduler.messages import AnswerFailed, Condemn, InterestRenewed, LoadAsked, Noted
from openmint_scheduler.settings import SchedulerSettings
from openmint_scheduler.snapshot import snapshot

log = structlog.get_logger()

STAND_BY_S = 1.0
"""How often one that stands by tries to lead."""

FETCH_BATCH = 256
FETCH_WAIT_S = 1.0
AGAIN_S = 0.5
GAUGES_EVERY_S = 1.0

USER_FAULTS = {"bad_adapter"}


class BaseShell:
    """One base model in this process. `run` it until stopped."""

    def __init__(
        self, base: str, bus: Bus, settings: SchedulerSettings, clock: Clock, engine_factory: EngineFactory, owner: str
    ) -> None:
        self.base = base
        self.conductor: Conductor | None = None
        self._bus = bus
        self._settings = settings
        self._clock = clock
        self._engine_factory = engine_factory
        self._owner = owner
        self._beats: dict[str, EngineHeartbeat] = {}
        self._answers: set[asyncio.Task[bool]] = set()
        self._traces = LoadTraces()

    async def run(self) -> None:
        """Stand by and lead in turns, until cancelled."""
        while True:
            lead = await try_to_lead(self._settings.postgres_dsn, self.base, self._owner)
            if lead is None:
                await self._clock.sleep(STAND_BY_S)
                continue
            try:
                await self._lead(lead)
            finally:
                metrics.LEADING.labels(self.base).set(0)
                await lead.give_up()

    def on_heartbeat(self, beat: EngineHeartbeat) -> None:
        """An engine of this base lives."""
        self._beats[beat.engine] = beat
        if self.conductor is not None:
            self.conductor.beat(handlers.engine_beat(beat), beat.control_url)

    def on_engine_left(self, fact: EngineLeft) -> None:
        """An engine of this base is gone."""
        known = self._beats.get(fact.engine)
        if known is not None and known.boot_id == fact.boot_id:
            del self._beats[fact.engine]
        if self.conductor is not None:
            self.conductor.tell(handlers.engine_gone(fact))

    async def _lead(self, lead: Lead) -> None:
        core = LoaderScheduler(
            self._settings.limits(), self._settings.placement, self._settings.eviction, self._settings.ordering
        )
        limits = TimeLimits(self._settings.stage_timeout_s, self._settings.attach_timeout_s)
        conductor = Conductor(
            core, lead.epoch, self._clock, self._engine_factory, answer=self._answer, note=self._note,
            condemn=self._tell_condemned, time_limits=limits, traces=self._traces,
        )  # fmt: skip
        log.info("leader.started", base=self.base, epoch=lead.epoch, owner=self._owner)
        metrics.LEADING.labels(self.base).set(1)
        self.conductor = conductor
        beats, self._beats = self._beats, {}
        for beat in beats.values():
            if (datetime.now(UTC) - beat.occurred_at).total_seconds() < core.state.limits.silence_s:
                self.on_heartbeat(beat)
        parts = [
            asyncio.create_task(part)
            for part in (
                lead.ended.wait(),
                conductor.is_over.wait(),
                conductor.run(),
                self._again(self._take_requests, conductor),
                self._again(self._listen, conductor),
                tail(self._bus, [AliasMoved], self._on_alias_moved, deliver="last_per_subject", stream="EVENTS"),
                self._show(core),
            )
        ]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.conductor = None
            await conductor.close()
            self._traces.close()
            outcomes = await end(*parts)
            log.info("leader.ended", base=self.base, epoch=lead.epoch)
        for outcome in (conductor.broken, *outcomes):
            if isinstance(outcome, Exception):
                raise outcome

    async def _again(self, work: Callable[[Conductor], Awaitable[None]], conductor: Conductor) -> None:
        """Do `work` for ever; the bus may be away in between."""
        while True:
            try:
                await work(conductor)
            except (NatsError, APIError, OpenmintError, TimeoutError, OSError) as error:
                log.warning("bus.interrupted", base=self.base, detail=repr(error))
            await asyncio.sleep(AGAIN_S)

    async def _take_requests(self, conductor: Conductor) -> None:
        plan = await ensure_load_consumer(self._bus, self.base)
        subscription = await self._bus.js.pull_subscribe_bind(plan.name, plan.stream)
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    for message in await subscription.fetch(FETCH_BATCH, timeout=FETCH_WAIT_S):
                        await self._on_request(conductor, message, plan.name)
        finally:
            with contextlib.suppress(NatsError, OSError):
                await subscription.unsubscribe()

    async def _on_request(self, conductor: Conductor, message: Msg, consumer: str) -> None:
        """Ack a request once the core has it: what comes after is kept alive by its waiters, not by the stream."""
        metadata = message.metadata
        raw = RawMessage(
            message.subject, message.data, dict(message.headers or {}), metadata.stream, metadata.sequence.stream
        )
        try:
            request = decode_raw(raw).event
        except CallerMistake as error:
            log.warning("load.unreadable", subject=message.subject, detail=error.detail)
            await bury(self._bus, raw, error, consumer=consumer)
            await message.term()
            return
        assert isinstance(request, LoadRequested)
        age_s = max(0.0, (datetime.now(UTC) - metadata.timestamp).total_seconds())
        event = handlers.load_asked(request, self._clock.monotonic_s(), age_s)
        if event is not None:
            conductor.tell(event)
            self._trace(conductor, event, message)
        await message.ack()

    async def _listen(self, conductor: Conductor) -> None:
        """Interest and questions, on core NATS; subscriptions outlive a loss of the connection."""

        async def on_interest(message: Msg) -> None:
            try:
                request = LoadRequested.model_validate_json(message.data)
                event = handlers.interest_told(request, message.subject, self._clock.monotonic_s())
            except (ValidationError, CallerMistake) as error:
                log.warning("load.unreadable", subject=message.subject, detail=str(error)[:300])
                return
            conductor.tell(event)
            if isinstance(event, InterestRenewed):
                self._trace(conductor, event, message)

        async def on_question(message: Msg) -> None:
            query = SchedulerQuery()
            with contextlib.suppress(ValidationError):
                query = SchedulerQuery.model_validate_json(message.data or b"{}")
            seen = snapshot(conductor.core, self.base, conductor.epoch, self._clock.monotonic_s(), query)
            await message.respond(orjson.dumps(seen))

        nc = self._bus.nc
        interest = await nc.subscribe(f"openmint.load.interest.v1.{self.base}.>", cb=on_interest)
        questions = [
            await nc.subscribe(subject, cb=on_question) for subject in (query_subject(self.base), EVERY_LEADER)
        ]
        try:
            await asyncio.Event().wait()
        finally:
            with contextlib.suppress(NatsError, OSError):
                for subscription in (interest, *questions):
                    await subscription.unsubscribe()

    def _trace(self, conductor: Conductor, event: LoadAsked | InterestRenewed, message: Msg) -> None:
        """Follow the load that a traced request has just begun."""
        load = conductor.core.state.loads.get(event.wanted.key)
        if load is not None and message.headers:
            self._traces.begin(event.wanted, load.load_class, message.headers.get(TRACEPARENT))

    def _on_alias_moved(self, fact: AliasMoved) -> None:
        age_s = (datetime.now(UTC) - fact.occurred_at).total_seconds()
        is_ours = fact.base == self.base and fact.alias in self._settings.prefetched
        if is_ours and age_s < self._settings.warm_s and self.conductor is not None:
            self.conductor.tell(handlers.alias_turned(fact))

    async def _show(self, core: LoaderScheduler) -> None:
        while True:
            metrics.show_core(self.base, core)
            self._traces.sweep(core.state.loads)
            await asyncio.sleep(GAUGES_EVERY_S)

    def _answer(self, answer: AnswerFailed) -> None:
        metrics.count_failure(self.base, answer)
        self._traces.end(answer.wanted.key, answer.code)
        wanted = answer.wanted
        log.warning(
            "load.failed", base=self.base, pool=wanted.key.pool, revision=wanted.key.digest, policy=wanted.label,
            code=answer.code, detail=answer.detail, retry_after_s=answer.retry_after_s,
        )  # fmt: skip
        fault = "user" if answer.code in USER_FAULTS else "server"
        fact = LoadFailed(
            base=self.base,
            pool=wanted.key.pool,
            tenant=wanted.tenant,
            digest=wanted.key.digest,
            cause=Cause(code=answer.code, detail=answer.detail, fault=fault),
            retry_after_s=answer.retry_after_s,
        )
        self._publish(fact)

    def _tell_condemned(self, condemned: Condemn) -> None:
        log.error(
            "adapter.condemned", base=self.base, engine=condemned.engine, revision=condemned.digest,
            failures=condemned.failures, reason=condemned.reason,
        )  # fmt: skip
        self._publish(
            AdapterCondemned(
                base=self.base,
                engine=condemned.engine,
                digest=condemned.digest,
                failures=condemned.failures,
                reason=condemned.reason,
            )
        )

    def _publish(self, fact: AdapterCondemned | LoadFailed) -> None:
        task = asyncio.create_task(self._bus.publish_soft(fact))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    def _note(self, note: Noted) -> None:
        metrics.count_note(self.base, note)
        self._traces.noted(note)
        log.info(note.happening, base=self.base, **note.fields)
