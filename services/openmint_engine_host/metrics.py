"""Metrics of one engine and its host. What the engine's own front counts comes from its pulse, a second old at most."""

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from openmint.engines.protocol import AttachResult, StageResult

STAGE_SECONDS = Histogram(
    "openmint_engine_stage_seconds",
    "Preparing a revision that was not staged yet, by part: fetch, verify, pack",
    ["part"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
STAGES = Counter("openmint_engine_stages", "Stage commands, by whether the copy was there already", ["was_staged"])
ATTACH_SECONDS = Histogram(
    "openmint_engine_attach_seconds",
    "Making one staged revision resident, inside the engine",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2),
)
ATTACHES = Counter("openmint_engine_attaches", "Attach commands, by what became of them", ["outcome"])


def count_stage(result: StageResult) -> None:
    """A revision lies staged."""
    STAGES.labels(str(result.was_staged).lower()).inc()
    if not result.was_staged:
        for part, took_ms in (("fetch", result.fetch_ms), ("pack", result.pack_ms)):
            STAGE_SECONDS.labels(part).observe(took_ms / 1000)


def count_attach(result: AttachResult) -> None:
    """One revision of a batch was attached or not."""
    ATTACHES.labels(result.error_code or "resident").inc()
    if not result.error_code:
        ATTACH_SECONDS.observe(result.attach_ms / 1000)


class EngineCollector(Collector):
    """Reads the engine's newest pulse when Prometheus asks. Its counters begin anew with each boot."""

    def __init__(self, look: Callable[[], dict[str, Any] | None]) -> None:
        """`look` gives what `EngineHost.figures` does; None while the engine is down."""
        self._look = look

    def collect(self) -> Iterable[Metric]:
        """One sample of everything."""
        seen = self._look()
        yield GaugeMetricFamily("openmint_engine_up", "1 while the engine answers", value=0 if seen is None else 1)
        if seen is None:
            return
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"openmint_engine_{name}", text, value=float(seen[name]))
        yield CounterMetricFamily("openmint_engine_admitted", "Requests admitted", value=float(seen["admitted"]))
        refused = CounterMetricFamily("openmint_engine_refused", "Requests sent back undone", labels=["reason"])
        for reason, count in seen["refused"].items():
            refused.add_metric([reason], float(count))
        yield refused


GAUGES = {
    "residents": "Adapters that the engine holds",
    "capacity": "Adapters that it may hold",
    "slots": "Adapters that one step may use",
    "slots_taken": "Slots with an adapter in them, at the scheduler's last look",
    "staged": "Prepared copies beside the engine",
    "running": "Sequences in a step",
    "waiting": "Sequences admitted beyond those",
}
