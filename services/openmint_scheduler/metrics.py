"""Counters and gauges of the scheduler. Policies and revisions are never labels: there are a million of them."""

from collections import Counter as Tally
from typing import get_args

from prometheus_client import Counter, Gauge, Histogram

from openmint.engines.protocol import EngineCondition
from openmint.events.serving import LoadClass
from openmint_scheduler.core import LoaderScheduler
from openmint_scheduler.ledger import EngineEntry
from openmint_scheduler.messages import AnswerFailed, Noted

HAPPENINGS = Counter(
    "openmint_load_happenings",
    "What happened to loads, adapters and engines: accepted, attached, evicted, replicating, lost, …",
    ["base", "happening"],
)
VERDICTS = Counter(
    "openmint_load_verdicts",
    "Answers to load requests: accepted, joined, or a refusal's code",
    ["base", "verdict"],
)
WAITING = Gauge("openmint_load_waiting", "Loads that wait for an engine", ["base", "pool", "load_class"])
WAITING_SECONDS = Gauge(
    "openmint_load_waiting_seconds", "How long a load that is asked for now will wait", ["base", "pool"]
)
UNDER_WAY = Gauge("openmint_load_under_way", "Loads on an engine that do not answer yet", ["base", "phase"])
ENGINES = Gauge("openmint_load_engines", "Engines that tell of themselves", ["base", "condition"])
RESIDENTS = Gauge("openmint_load_residents", "Adapters on all engines that may be given loads", ["base"])
STAGED = Gauge("openmint_load_staged", "Staged copies beside all engines that may be given loads", ["base"])
MISSING = Gauge("openmint_load_missing_slots", "Loads that wait beyond the free places", ["base"])
LEADING = Gauge("openmint_load_leading", "1 while this process leads the base", ["base"])
LOAD_SECONDS = Histogram(
    "openmint_adapter_load_seconds",
    "From request to resident",
    ["base", "load_class"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
ATTACH_SECONDS = Histogram(
    "openmint_adapter_attach_seconds", "Inside the engine", ["base"], buckets=(0.002, 0.005, 0.01, 0.025, 0.1, 0.5, 2)
)

VERDICT_OF = {"load.accepted": "accepted", "load.coalesced": "joined"}

LOAD_CLASSES: tuple[str, ...] = get_args(LoadClass)
PHASES = ("staging", "staged", "attaching")
CONDITIONS: tuple[str, ...] = (*get_args(EngineCondition), "unknown")


def count_note(base: str, note: Noted) -> None:
    """Count what the core noted."""
    HAPPENINGS.labels(base, note.happening).inc()
    if note.happening in VERDICT_OF:
        VERDICTS.labels(base, VERDICT_OF[note.happening]).inc()
    if note.happening == "adapter.attached":
        LOAD_SECONDS.labels(base, str(note.fields["load_class"])).observe(float(note.fields["wait_s"]))
        ATTACH_SECONDS.labels(base).observe(float(note.fields["attach_ms"]) / 1000)


def count_failure(base: str, answer: AnswerFailed) -> None:
    """Count a load that was refused or failed."""
    VERDICTS.labels(base, answer.code).inc()


def show_core(base: str, core: LoaderScheduler) -> None:
    """Bring the gauges up to date."""
    state = core.state
    entries = list(state.ledger.engines.values())
    usable = [entry for entry in entries if entry.is_usable]
    waiting = Tally((load.wanted.key.pool, load.load_class) for load in state.loads.values() if load.phase == "waiting")
    for pool, queue in state.queues.items():
        WAITING_SECONDS.labels(base, pool).set(state.pace(pool).wait_s(len(queue)))
        for load_class in LOAD_CLASSES:
            WAITING.labels(base, pool, load_class).set(waiting[pool, load_class])
    phases = Tally(load.phase for load in state.loads.values())
    for phase in PHASES:
        UNDER_WAY.labels(base, phase).set(phases[phase])
    conditions = Tally(map(condition_of, entries))
    for condition in CONDITIONS:
        ENGINES.labels(base, condition).set(conditions[condition])
    RESIDENTS.labels(base).set(sum(len(entry.residents) for entry in usable))
    STAGED.labels(base).set(sum(len(entry.staged) for entry in usable))
    MISSING.labels(base).set(max(0, waiting.total() - sum(max(0, entry.free) for entry in usable)))


def condition_of(entry: EngineEntry) -> str:
    """What the engine says of itself; `unknown` for one that is ready and that we have not looked at yet."""
    return "unknown" if entry.condition == "ready" and entry.looked_s is None else entry.condition
