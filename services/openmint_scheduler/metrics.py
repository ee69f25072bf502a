"""Counters and gauges of the scheduler. Policies and revisions are never labels: there are a million of them."""

from prometheus_client import Counter, Gauge, Histogram

from openmint_scheduler.core import LoaderScheduler
from openmint_scheduler.messages import AnswerFailed, Noted

HAPPENINGS = Counter("openmint_load_happenings", "What happened to loads and adapters", ["base", "happening"])
FAILURES = Counter("openmint_load_failures", "Loads answered with a failure", ["base", "code"])
WAITING = Gauge("openmint_load_waiting", "Loads that wait for an engine", ["base", "pool"])
UNDER_WAY = Gauge("openmint_load_under_way", "Loads staging, staged or attaching", ["base"])
ENGINES = Gauge("openmint_load_engines", "Engines that may be given loads", ["base"])
RESIDENTS = Gauge("openmint_load_residents", "Adapters on all engines", ["base"])
MISSING = Gauge("openmint_load_missing_slots", "Loads that wait beyond the free places", ["base"])
LEADING = Gauge("openmint_load_leading", "1 while this process leads the base", ["base"])
LOAD_SECONDS = Histogram(
    "openmint_adapter_load_seconds",
    "From request to resident",
    ["base"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
ATTACH_SECONDS = Histogram(
    "openmint_adapter_attach_seconds", "Inside the engine", ["base"], buckets=(0.002, 0.005, 0.01, 0.025, 0.1, 0.5, 2)
)


def count_note(base: str, note: Noted) -> None:
    """Count what the core noted."""
    HAPPENINGS.labels(base, note.happening).inc()
    if note.happening == "adapter.attached":
        LOAD_SECONDS.labels(base).observe(float(note.fields["wait_s"]))
        ATTACH_SECONDS.labels(base).observe(float(note.fields["attach_ms"]) / 1000)


def count_failure(base: str, answer: AnswerFailed) -> None:
    """Count a load that failed."""
    FAILURES.labels(base, answer.code).inc()


def show_core(base: str, core: LoaderScheduler) -> None:
    """Bring the gauges up to date."""
    state = core.state
    usable = [entry for entry in state.ledger.engines.values() if entry.is_usable]
    waiting = sum(len(queue) for queue in state.queues.values())
    for pool, queue in state.queues.items():
        WAITING.labels(base, pool).set(len(queue))
    UNDER_WAY.labels(base).set(len(state.loads) - waiting)
    ENGINES.labels(base).set(len(usable))
    RESIDENTS.labels(base).set(sum(len(entry.residents) for entry in usable))
    MISSING.labels(base).set(max(0, waiting - sum(max(0, entry.free) for entry in usable)))
