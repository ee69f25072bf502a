"""Durable consumers on FastStream, bound to the table of `streams.py` and settled by `settling.py`.

FastStream's own ack policy deletes what a handler fails on, and naming a stream without `declare=False` overwrites its
settings; both are out of reach here. Handlers are registered by `fact_subscriber` and `command_subscriber` alone.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from faststream import AckPolicy
from faststream.nats import JStream, NatsBroker, PullSub
from faststream.security import SASLPlaintext

from openmint.bus.connection import (
    MAX_OUTSTANDING_PINGS,
    PENDING_BYTES,
    PING_INTERVAL_S,
    Bus,
)
from openmint.bus.messages import RawMessage, Received, decode_raw
from openmint.bus.provision import consumer_config
from openmint.bus.settling import Settler, patiently, raw_message, remember_ack_wait, settle_middleware
from openmint.bus.streams import ConsumerPlan, consumer_of
from openmint.errors import CallerMistake
from openmint.events import Command, Fact
from openmint.identifiers import check_name
from openmint.settings import CommonSettings

GRACEFUL_TIMEOUT_S = 15.0
"""What a handler gets to finish after SIGTERM; below any orchestrator's grace. Then its message goes to another."""

FETCH_S = 5.0

F = TypeVar("F", bound=Fact)
C = TypeVar("C", bound=Command)

FactHandler = Callable[[F], Awaitable[None]]
CommandHandler = Callable[[Received[C]], Awaitable[None]]
Refuse = Callable[[RawMessage, CallerMistake], Awaitable[None]]


def make_broker(settings: CommonSettings, service: str) -> NatsBroker:
    """The broker of one process: short pings, endless reconnects, every message settled by us.

    `settings` must be resolved.
    """
    settler = Settler(lambda: Bus(broker.connection, service))
    security = None
    if settings.nats_user:
        security = SASLPlaintext(username=settings.nats_user, password=settings.nats_password, use_ssl=False)
    broker = NatsBroker(
        settings.nats_url,
        name=f"openmint/{service}/consumers",
        security=security,
        allow_reconnect=True,
        max_reconnect_attempts=-1,
        reconnect_time_wait=1,
        ping_interval=PING_INTERVAL_S,
        max_outstanding_pings=MAX_OUTSTANDING_PINGS,
        pending_size=PENDING_BYTES,
        graceful_timeout=GRACEFUL_TIMEOUT_S,
        middlewares=(settle_middleware(settler),),
        apply_types=False,
        logger=logging.getLogger("faststream"),
    )
    return broker


def fact_subscriber(
    broker: NatsBroker, service: str, fact: type[F], *, plan: ConsumerPlan | None = None
) -> Callable[[FactHandler[F]], FactHandler[F]]:
    """Register the handler of a fact for a service, as the table has it.

    The handler gets the event; delivery may repeat. What it raises decides what becomes of the message.
    """

    def register(handler: FactHandler[F]) -> FactHandler[F]:
        async def receive(raw: RawMessage) -> None:
            received = decode_raw(raw)
            await patiently(lambda: handler(cast(F, received.event)))

        _subscribe(broker, plan or consumer_of(service, fact), receive)
        return handler

    return register


def command_subscriber(
    broker: NatsBroker,
    service: str,
    command: type[C],
    *,
    refuse: Refuse | None = None,
    plan: ConsumerPlan | None = None,
) -> Callable[[CommandHandler[C]], CommandHandler[C]]:
    """Register the handler of a command for a service, as the table has it.

    `refuse` answers the author: of a message that can't be read (which then becomes a dead letter) and of one that the
    handler raised a CallerMistake for (which is then done with). It is not called where the subject names nobody.
    """

    def register(handler: CommandHandler[C]) -> CommandHandler[C]:
        async def receive(raw: RawMessage) -> None:
            try:
                received = decode_raw(raw)
            except CallerMistake as mistake:
                if refuse is not None and _has_author(raw):
                    await _refuse(refuse, raw, mistake)
                raise
            try:
                await patiently(lambda: handler(cast("Received[C]", received)))
            except CallerMistake as mistake:
                if refuse is None:
                    raise
                await _refuse(refuse, raw, mistake)

        _subscribe(broker, plan or consumer_of(service, command), receive)
        return handler

    return register


async def _refuse(refuse: Refuse, raw: RawMessage, mistake: CallerMistake) -> None:
    await patiently(lambda: refuse(raw, mistake))


def _has_author(raw: RawMessage) -> bool:
    try:
        check_name(raw.token)
        return bool(raw.tenant)
    except CallerMistake:
        return False


async def _as_value(message: Any) -> RawMessage:
    return raw_message(message.raw_message)


def _subscribe(broker: NatsBroker, plan: ConsumerPlan, receive: Callable[[RawMessage], Awaitable[None]]) -> None:
    subscriber = broker.subscriber(
        plan.filter_subject,
        durable=plan.name,
        stream=JStream(plan.stream, declare=False),
        # Binding to a consumer that exists ignores this; one that was never provisioned is at least made right.
        config=consumer_config(plan, plan.filter_subject),
        pull_sub=PullSub(batch_size=plan.batch, timeout=FETCH_S),
        ack_policy=AckPolicy.MANUAL,
        decoder=_as_value,
        no_reply=True,
    )
    subscriber(receive)
    remember_ack_wait(plan)
