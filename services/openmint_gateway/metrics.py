"""Prometheus metrics of the gateway. Labels are few and bounded: policies, being millions, are log fields."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from openmint.errors import Overloaded
from openmint_gateway.problems import QueueFull, WaitTooLong
from openmint_gateway.waiting_room import WaitingRoom

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class GatewayMetrics:
    """The metrics of one gateway process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "openmint_gateway_requests", "Inference requests", ["route", "outcome"], registry=self.registry
        )
        self._request_seconds = Histogram(
            "openmint_gateway_request_seconds", "Whole request", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self._first_token_seconds = Histogram(
            "openmint_gateway_first_token_seconds", "Time to the first event", buckets=_SECONDS, registry=self.registry
        )
        self._load_wait_seconds = Histogram(
            "openmint_gateway_load_wait_seconds", "Wait for a cold load", buckets=_SECONDS, registry=self.registry
        )
        self._queue_wait_seconds = Histogram(
            "openmint_gateway_queue_wait_seconds", "Wait for a busy engine", buckets=_SECONDS, registry=self.registry
        )
        self._verdicts = Counter(
            "openmint_gateway_refusals", "Requests refused for want of room", ["verdict"], registry=self.registry
        )
        self._jobs = Counter("openmint_intake_jobs", "Training requests", ["outcome"], registry=self.registry)
        self.waiting = Gauge("openmint_gateway_waiting", "Requests that wait now", registry=self.registry)
        self.names = Gauge("openmint_gateway_names_cached", "Resolved names in memory", registry=self.registry)

    def watch(self, room: WaitingRoom) -> None:
        """Tell of its lines whenever the page is read."""
        self.waiting.set_function(lambda: room.total)
        self.registry.register(_Lines(room))

    def refused(self, verdict: Overloaded) -> None:
        """A request was refused for want of room: when it came, or when its time was over."""
        names: dict[type[Overloaded], str] = {QueueFull: "queue_full", WaitTooLong: "wait_too_long"}
        self._verdicts.labels(names.get(type(verdict), "too_late")).inc()

    def answered(self, route: str, outcome: str, total_ms: float, first_token_ms: float | None) -> None:
        """One inference request has ended."""
        self._requests.labels(route, outcome).inc()
        self._request_seconds.labels(route).observe(total_ms / 1000)
        if first_token_ms is not None:
            self._first_token_seconds.observe(first_token_ms / 1000)

    def waited(self, load_ms: float, queue_ms: float, *, was_cold: bool) -> None:
        """How long it waited, if it did."""
        if was_cold:
            self._load_wait_seconds.observe(load_ms / 1000)
        if queue_ms:
            self._queue_wait_seconds.observe(queue_ms / 1000)

    def taken_in(self, outcome: str) -> None:
        """A training request was accepted, known already, or refused."""
        self._jobs.labels(outcome).inc()

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)


class _Lines(Collector):
    """What the lines are like at this moment: read on request, so that the hot path pays nothing for it."""

    def __init__(self, room: WaitingRoom) -> None:
        self._room = room

    def collect(self) -> Iterable[Metric]:
        """Prometheus."""
        queued = GaugeMetricFamily("openmint_gateway_queued", "Requests that wait for room", labels=["base"])
        loading = GaugeMetricFamily("openmint_gateway_loading", "Requests that wait for a load", labels=["base"])
        waited_for = GaugeMetricFamily("openmint_gateway_adapters_waiting", "Adapters queued for", labels=["base"])
        caution = GaugeMetricFamily("openmint_gateway_caution", "Expected waits are taken this often", labels=["base"])
        sent = CounterMetricFamily("openmint_gateway_sent", "Requests sent to engines", labels=["base", "how"])
        running = GaugeMetricFamily("openmint_gateway_sequences", "Sequences on an engine", labels=["engine"])
        adapters = GaugeMetricFamily("openmint_gateway_adapters", "Different adapters on an engine", labels=["engine"])
        pace = GaugeMetricFamily("openmint_gateway_pace", "Tokens a second of a busy engine", labels=["engine"])
        for base, line in self._room.lines():
            queued.add_metric([base], line.queues.queued)
            loading.add_metric([base], line.forecast.loading)
            waited_for.add_metric([base], len(line.queues.adapters))
            caution.add_metric([base], line.forecast.caution)
            for how, times in line.picks.items():
                sent.add_metric([base, how], times)
            for engine, seat in line.engines.items():
                running.add_metric([engine], seat.sequences)
                adapters.add_metric([engine], len(seat.adapters))
                pace.add_metric([engine], seat.pace.rate() or 0.0)
        return [queued, loading, waited_for, caution, sent, running, adapters, pace]
