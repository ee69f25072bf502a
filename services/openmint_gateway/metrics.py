"""Prometheus metrics of the gateway. Labels are few and bounded: policies, being millions, are log fields."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

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
        self._jobs = Counter("openmint_intake_jobs", "Training requests", ["outcome"], registry=self.registry)
        self.waiting = Gauge("openmint_gateway_waiting", "Requests that wait now", registry=self.registry)
        self.names = Gauge("openmint_gateway_names_cached", "Resolved names in memory", registry=self.registry)

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
