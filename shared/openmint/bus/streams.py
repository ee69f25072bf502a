"""Every stream and durable consumer, with limits and their reasons. `provision` makes them; services only bind.

Verbs are listed by name, never by a wildcard over an area, so that soft state can't slip into EVENTS:
`job.progressed`, `engine.heartbeat` and `load.interest` are core NATS and in no stream at all.

All streams are files. A single server forgets memory streams, settings included, when it restarts; files cost a write
to the page cache and keep sequences valid for whoever tails. What is soft ages out in minutes.
"""

from dataclasses import dataclass

from nats.js.api import DiscardPolicy, RetentionPolicy

from openmint.events import (
    AdapterCondemned,
    CheckpointSaved,
    Event,
    JobAccepted,
    LoadRequested,
    RevisionExported,
    TrainRequested,
)

MINUTE_S = 60.0
DAY_S = 24 * 3600.0
MIB = 1024 * 1024

MAX_MESSAGE_BYTES = MIB
"""As much as the server takes at all: a body is either refused to its publisher's face or answered by a service. A
lower limit of a stream would swallow what a publisher without acks sends."""

DUPLICATE_WINDOW_S = 10 * MINUTE_S
"""Longer than a relay or publisher stays down between a lost ack and its retry; later copies meet the inbox."""

MAX_TRIES = 8
"""Deliveries of one message. With RETRY_DELAYS_S a fault may last about two minutes before it costs a dead letter."""

RETRY_DELAYS_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)

ACK_WAIT_S = 30.0
"""A crash costs this long at most; a living handler beats every third of it."""

DEAD_ROOT = "openmint.dead"


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """One stream as it must be."""

    name: str
    subjects: tuple[str, ...]
    retention: RetentionPolicy
    max_age_s: float
    max_bytes: int
    discard: DiscardPolicy
    description: str
    duplicate_window_s: float = DUPLICATE_WINDOW_S
    max_msg_bytes: int = MAX_MESSAGE_BYTES


@dataclass(frozen=True, slots=True)
class ConsumerPlan:
    """One durable pull consumer with explicit acks as it must be. Dead letters are ours: the server never gives up."""

    name: str
    stream: str
    service: str
    event: type[Event]
    ack_wait_s: float = ACK_WAIT_S
    max_ack_pending: int = 16
    batch: int = 1
    """Fetched and handled together; the next batch waits for the slowest, so long work has 1."""

    @property
    def filter_subject(self) -> str:
        """What it consumes."""
        return self.event.subject_filter()


JOBS = StreamPlan(
    name="JOBS",
    subjects=("openmint.train.requested.>",),
    retention=RetentionPolicy.WORK_QUEUE,
    max_age_s=7 * DAY_S,  # a request that nobody took in for a week is not wanted any more
    max_bytes=1024 * MIB,  # a thousand requests of the largest kind, or a million that name their data by digest
    discard=DiscardPolicy.NEW,  # a full stream refuses the newcomer; it never drops what it has acked
    description="requests to train, until intake has answered them",
)

LOADS = StreamPlan(
    name="LOADS",
    subjects=("openmint.load.requested.>",),
    retention=RetentionPolicy.WORK_QUEUE,
    max_age_s=5 * MINUTE_S,  # interest lapses in seconds; what is older nobody waits for
    max_bytes=64 * MIB,
    discard=DiscardPolicy.OLD,
    description="requests for cold loads, until the scheduler of their base has queued them",
    duplicate_window_s=MINUTE_S,
)

EVENTS = StreamPlan(
    name="EVENTS",
    subjects=(
        "openmint.job.accepted.>",
        "openmint.job.refused.>",
        "openmint.job.started.>",
        "openmint.job.completed.>",
        "openmint.job.failed.>",
        "openmint.job.cancelled.>",
        "openmint.checkpoint.saved.>",
        "openmint.revision.exported.>",
        "openmint.revision.failed.>",
        "openmint.revision.eligible.>",
        "openmint.revision.rejected.>",
        "openmint.revision.quarantined.>",
        "openmint.revision.retired.>",
        "openmint.alias.moved.>",
    ),
    retention=RetentionPolicy.LIMITS,
    max_age_s=7 * DAY_S,
    max_bytes=2048 * MIB,  # about four million facts; the catalogue keeps what happened, this only tells it
    discard=DiscardPolicy.OLD,
    description="facts of the catalogue",
)

RESIDENCY = StreamPlan(
    name="RESIDENCY",
    subjects=(
        "openmint.adapter.resident.>",
        "openmint.adapter.gone.>",
        "openmint.adapter.condemned.>",
        "openmint.load.failed.>",
        "openmint.engine.joined.>",
        "openmint.engine.left.>",
    ),
    retention=RetentionPolicy.LIMITS,
    max_age_s=10 * MINUTE_S,  # whoever was away for longer asks the engines
    max_bytes=64 * MIB,
    discard=DiscardPolicy.OLD,
    description="soft state told by engine hosts and the scheduler",
    duplicate_window_s=MINUTE_S,
)

DEAD = StreamPlan(
    name="DEAD",
    subjects=(f"{DEAD_ROOT}.>",),
    retention=RetentionPolicy.LIMITS,
    max_age_s=30 * DAY_S,
    max_bytes=512 * MIB,
    discard=DiscardPolicy.OLD,
    description="messages that could not be read or used up their tries, with the error",
)

ADVISORIES = StreamPlan(
    name="ADVISORIES",
    subjects=(
        "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>",
        "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.>",
    ),
    retention=RetentionPolicy.LIMITS,
    max_age_s=7 * DAY_S,
    max_bytes=64 * MIB,
    discard=DiscardPolicy.OLD,
    description="the server's own word on messages it gave up or was told to drop",
)

STREAMS = (JOBS, LOADS, EVENTS, RESIDENCY, DEAD, ADVISORIES)
"""Together they may take 3.7 GiB: give the server 4 GiB of file store, for it refuses a stream that might not fit."""

CONSUMERS = (
    # Intake answers in milliseconds; many at once only wait for the database.
    ConsumerPlan("gateway-intake", "JOBS", "gateway", TrainRequested, max_ack_pending=64, batch=16),
    # A wake only: every worker also looks for due work by itself, and the catalogue decides who gets it.
    ConsumerPlan("trainer-job-accepted", "EVENTS", "trainer", JobAccepted, batch=16),
    ConsumerPlan("exporter-checkpoint-saved", "EVENTS", "exporter", CheckpointSaved, max_ack_pending=4),
    ConsumerPlan("evaluator-revision-exported", "EVENTS", "evaluator", RevisionExported, max_ack_pending=4),
    # Lost with its stream, it comes again: a bad revision that is asked for is found bad again.
    ConsumerPlan("keeper-adapter-condemned", "RESIDENCY", "keeper", AdapterCondemned, max_ack_pending=4),
)


def load_consumer(base: str) -> ConsumerPlan:
    """The consumer of one base's load requests, made by `provision.ensure_load_consumer` when a base gets a leader."""
    return ConsumerPlan(f"scheduler-loads-{base}", "LOADS", "scheduler", LoadRequested, max_ack_pending=1024)


def load_filter(base: str) -> str:
    """The load requests of one base."""
    return f"{LoadRequested.event_type()}.{base}.>"


def consumer_of(service: str, event: type[Event]) -> ConsumerPlan:
    """The table's entry for this pair. Raises: LookupError, which is a mistake of ours."""
    for plan in CONSUMERS:
        if plan.service == service and plan.event is event:
            return plan
    raise LookupError(f"bus/streams.py has no consumer of {event.__name__} for {service}")


def stream_of(subject: str) -> StreamPlan | None:
    """The stream that keeps messages of this subject; None for core NATS."""
    for plan in STREAMS:
        if any(subject.startswith(pattern.removesuffix(">")) for pattern in plan.subjects):
            return plan
    return None


def retry_delay_s(deliveries: int) -> float:
    """How long a message rests after its n-th delivery failed."""
    return RETRY_DELAYS_S[min(deliveries, len(RETRY_DELAYS_S)) - 1]
