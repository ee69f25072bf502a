import re
from pathlib import Path

import prometheus_client

from openmint.identifiers import new_id
from openmint_scheduler import metrics
from openmint_scheduler.messages import AnswerFailed, LoadKey, Noted, Wanted

REPOSITORY = Path(__file__).parents[3]


def value(name: str, **labels: str) -> float | None:
    return prometheus_client.REGISTRY.get_sample_value(name, labels)


def test_gauges_tell_depth_by_class_loads_by_phase_and_engines_by_condition(bench):
    base = f"base-{new_id().hex}"
    bench.meet("starting", condition="starting")
    bench.meet("new")
    bench.todo.clear()
    for number, load_class in enumerate(("interactive", "interactive", "prefetch")):
        bench.ask(number + 1, load_class=load_class)
    metrics.show_core(base, bench.core)
    assert value("openmint_load_waiting", base=base, pool="serve", load_class="interactive") == 2
    assert value("openmint_load_waiting", base=base, pool="serve", load_class="prefetch") == 1
    assert value("openmint_load_waiting", base=base, pool="serve", load_class="rollout") == 0
    assert value("openmint_load_waiting_seconds", base=base, pool="serve") > 0
    assert value("openmint_load_missing_slots", base=base) == 3
    assert value("openmint_load_engines", base=base, condition="starting") == 1
    assert value("openmint_load_engines", base=base, condition="unknown") == 1
    bench.engine("one")
    metrics.show_core(base, bench.core)
    assert value("openmint_load_under_way", base=base, phase="staging") == 3
    assert value("openmint_load_waiting", base=base, pool="serve", load_class="interactive") == 0
    bench.settle()
    metrics.show_core(base, bench.core)
    assert value("openmint_load_under_way", base=base, phase="staging") == 0
    assert value("openmint_load_residents", base=base) == 3


def test_verdicts_and_load_times_are_counted_from_what_the_core_says(bench):
    base = f"base-{new_id().hex}"
    bench.engine("one")
    bench.ask(1, load_class="rollout")
    bench.ask(1, waiter="g2", load_class="rollout")
    bench.settle()
    for said in bench.log:
        if isinstance(said, Noted):
            metrics.count_note(base, said)
    wanted = Wanted(LoadKey("serve", "sha256:x"), "acme", "acme/p")
    metrics.count_failure(base, AnswerFailed(wanted, "overloaded", "full", 1.0))
    for verdict in ("accepted", "joined", "overloaded"):
        assert value("openmint_load_verdicts_total", base=base, verdict=verdict) == 1
    assert value("openmint_adapter_load_seconds_count", base=base, load_class="rollout") == 1
    assert value("openmint_load_happenings_total", base=base, happening="adapter.attached") == 1


def test_metrics_that_the_chart_scales_engines_by_exist():
    chart = (REPOSITORY / "deploy" / "helm" / "openmint" / "templates" / "autoscaling.yaml").read_text()
    named = set(re.findall(r"openmint_(?:load|adapter)_\w+", chart))
    known = {family.name for family in prometheus_client.REGISTRY.collect()}
    assert named
    assert named <= known
