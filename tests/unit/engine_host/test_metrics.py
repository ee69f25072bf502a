from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import REGISTRY

from openmint.engines.protocol import AttachResult, StageResult
from openmint_engine_host import metrics
from openmint_engine_host.plugin.admission import Admission, ResidentAdapter, Ticket

SEEN = {
    "residents": 3, "capacity": 32, "slots": 8, "slots_taken": 2, "staged": 5, "running": 4, "waiting": 1,
    "admitted": 17, "refused": {"full": 2, "absent": 1},
}  # fmt: skip


def test_a_pulse_becomes_gauges_and_counters():
    registry = CollectorRegistry()
    registry.register(metrics.EngineCollector(lambda: SEEN))
    page = generate_latest(registry).decode()
    assert "openmint_engine_up 1.0" in page
    assert "openmint_engine_residents 3.0" in page
    assert "openmint_engine_slots_taken 2.0" in page
    assert "openmint_engine_admitted_total 17.0" in page
    assert 'openmint_engine_refused_total{reason="full"} 2.0' in page


def test_an_engine_that_is_down_is_all_that_is_said():
    registry = CollectorRegistry()
    registry.register(metrics.EngineCollector(lambda: None))
    assert registry.get_sample_value("openmint_engine_up") == 0
    assert "residents" not in generate_latest(registry).decode()


def test_stages_and_attaches_are_counted_with_their_times():
    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    staged, refused = value("openmint_engine_stages_total", was_staged="true"), value(
        "openmint_engine_attaches_total", outcome="refused"
    )  # fmt: skip
    fetched = value("openmint_engine_stage_seconds_sum", part="fetch")
    metrics.count_stage(StageResult("sha256:a", "l", 10, 40.0, 2.0, was_staged=False))
    metrics.count_stage(StageResult("sha256:a", "l", 10, 0.0, 0.0, was_staged=True))
    metrics.count_attach(AttachResult("sha256:a", "a#1", 6.0))
    metrics.count_attach(AttachResult("sha256:b", error_code="refused", error="no"))
    assert value("openmint_engine_stages_total", was_staged="true") == staged + 1
    assert abs(value("openmint_engine_stage_seconds_sum", part="fetch") - fetched - 0.04) < 1e-9
    assert value("openmint_engine_attaches_total", outcome="refused") == refused + 1


def test_admission_counts_what_it_lets_in_and_sends_back_by_reason():
    admission = Admission("base", max_running=2, margin=0, tenant_share=0.5)
    assert not isinstance(admission.admit("base", "acme"), Ticket)
    admission.closed_because = ""
    admission.add(ResidentAdapter("a", "sha256:a", 1, "", 0))
    assert isinstance(admission.admit("a", "acme"), Ticket)
    admission.admit("a", "acme")
    admission.admit("gone", "acme")
    admission.admit("base", "other")
    admission.admit("base", "third")
    assert admission.admitted == 2
    assert admission.refused == {"closed": 1, "tenant_share": 1, "absent": 1, "full": 1}
