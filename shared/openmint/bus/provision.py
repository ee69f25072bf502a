"""Make streams and consumers as the table says. Running it again changes nothing; drift is repaired or refused.

What the server can change in place is changed. A different retention would lose messages: it is refused, and a person
decides.
"""

from collections.abc import Awaitable
from dataclasses import dataclass

from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError

from openmint.bus.connection import Bus
from openmint.bus.streams import (
    CONSUMERS,
    STREAMS,
    ConsumerPlan,
    StreamPlan,
    load_consumer,
    load_filter,
)
from openmint.errors import BusUnavailable, Conflict


@dataclass(frozen=True, slots=True)
class ProvisionReport:
    """What was made, what was repaired, each with its differences, and what was as it should be."""

    created: tuple[str, ...]
    repaired: tuple[str, ...]
    unchanged: tuple[str, ...]

    @property
    def changed(self) -> tuple[str, ...]:
        """Everything that this run did; empty on a second run."""
        return self.created + self.repaired


async def provision(bus: Bus, *, replicas: int | None = None) -> ProvisionReport:
    """Make everything in `streams.py`. `replicas` None keeps what is there, and makes new streams with one.

    Raises: BusUnavailable; Conflict when a stream exists with another retention or storage.
    """
    created: list[str] = []
    repaired: list[str] = []
    unchanged: list[str] = []
    for plan in STREAMS:
        _note(plan.name, await _ensure_stream(bus.js, plan, replicas), created, repaired, unchanged)
    for plan in CONSUMERS:
        outcome = await _ensure_consumer(bus.js, plan, plan.filter_subject)
        _note(f"{plan.stream}/{plan.name}", outcome, created, repaired, unchanged)
    return ProvisionReport(tuple(created), tuple(repaired), tuple(unchanged))


async def ensure_load_consumer(bus: Bus, base: str) -> ConsumerPlan:
    """The consumer of one base's load requests; whoever leads that base calls this. Raises: BusUnavailable."""
    plan = load_consumer(base)
    await _ensure_consumer(bus.js, plan, load_filter(base))
    return plan


async def consumers_exist(bus: Bus, service: str) -> bool:
    """Are this service's consumers there? FastStream does not notice when one is deleted under it: ask in readiness."""
    for plan in CONSUMERS:
        if plan.service == service:
            try:
                await bus.js.consumer_info(plan.stream, plan.name)
            except (APIError, NatsError, TimeoutError, OSError):
                return False
    return True


def _note(name: str, outcome: str | None, created: list[str], repaired: list[str], unchanged: list[str]) -> None:
    if outcome is None:
        unchanged.append(name)
    elif outcome == "created":
        created.append(name)
    else:
        repaired.append(f"{name}: {outcome}")


async def _ensure_stream(js: JetStreamContext, plan: StreamPlan, replicas: int | None) -> str | None:
    wanted = _stream_config(plan, replicas or 1)
    try:
        info = await js.stream_info(plan.name)
    except NotFoundError:
        await _call(js.add_stream(wanted), plan.name)
        return "created"
    except (APIError, TimeoutError, OSError) as error:
        raise BusUnavailable(f"can't read stream {plan.name}: {error!r}", retry_after_s=1.0) from error
    present = info.config
    if replicas is None:
        wanted.num_replicas = present.num_replicas
    for name in ("retention", "storage"):
        if getattr(present, name) != getattr(wanted, name):
            raise Conflict(
                f"stream {plan.name} has {name} {getattr(present, name)}, {getattr(wanted, name)} is needed, and the "
                "server can't change that: save what it holds, delete it and provision again"
            )
    drift = [name for name in _STREAM_FIELDS if _plain(getattr(present, name)) != _plain(getattr(wanted, name))]
    if not drift:
        return None
    await _call(js.update_stream(wanted), plan.name)
    return ", ".join(drift)


async def _ensure_consumer(js: JetStreamContext, plan: ConsumerPlan, filter_subject: str) -> str | None:
    wanted = consumer_config(plan, filter_subject)
    try:
        present = (await js.consumer_info(plan.stream, plan.name)).config
    except NotFoundError:
        await _call(js.add_consumer(plan.stream, wanted), plan.name)
        return "created"
    except (APIError, TimeoutError, OSError) as error:
        raise BusUnavailable(f"can't read consumer {plan.name}: {error!r}", retry_after_s=1.0) from error
    if present.ack_policy != wanted.ack_policy or present.deliver_subject:
        raise Conflict(f"consumer {plan.name} of {plan.stream} is of another kind: delete it and provision again")
    drift = [name for name in _CONSUMER_FIELDS if _plain(getattr(present, name)) != _plain(getattr(wanted, name))]
    if not drift:
        return None
    await _call(js.add_consumer(plan.stream, wanted), plan.name)
    return ", ".join(drift)


async def _call(request: Awaitable[object], name: str) -> None:
    try:
        await request
    except (APIError, TimeoutError, OSError) as error:
        raise BusUnavailable(f"the server refused {name}: {error!r}", retry_after_s=1.0) from error


_STREAM_FIELDS = (
    "subjects",
    "max_age",
    "max_bytes",
    "max_msg_size",
    "discard",
    "duplicate_window",
    "num_replicas",
    "max_msgs",
    "max_msgs_per_subject",
    "description",
)
_CONSUMER_FIELDS = ("filter_subject", "ack_wait", "max_deliver", "max_ack_pending", "backoff", "max_waiting")


def _plain(value: object) -> object:
    if isinstance(value, list):
        return sorted(str(part) for part in value) or None
    return value


def _stream_config(plan: StreamPlan, replicas: int) -> StreamConfig:
    return StreamConfig(
        name=plan.name,
        description=plan.description,
        subjects=list(plan.subjects),
        retention=RetentionPolicy(plan.retention),
        storage=StorageType.FILE,
        max_age=plan.max_age_s,
        max_bytes=plan.max_bytes,
        max_msg_size=plan.max_msg_bytes,
        max_msgs=-1,
        max_msgs_per_subject=-1,
        discard=plan.discard,
        duplicate_window=plan.duplicate_window_s,
        num_replicas=replicas,
        allow_direct=True,
    )


def consumer_config(plan: ConsumerPlan, filter_subject: str) -> ConsumerConfig:
    """A consumer of the table as the server takes it."""
    return ConsumerConfig(
        name=plan.name,
        durable_name=plan.name,
        ack_policy=AckPolicy.EXPLICIT,
        deliver_policy=DeliverPolicy.ALL,
        filter_subject=filter_subject,
        ack_wait=plan.ack_wait_s,
        max_deliver=-1,
        max_ack_pending=plan.max_ack_pending,
        max_waiting=512,
    )
