"""The chart renders, lints, validates strictly, and our own rules can see a mistake."""

import copy
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deploy_check", REPOSITORY / "deploy" / "check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["deploy_check"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_chart_has_no_problem_in_any_variant(check: ModuleType) -> None:
    assert check.problems() == []


def test_wrong_type_is_seen_by_the_schema(check: ModuleType) -> None:
    manifests = copy.deepcopy(check.render({}))
    deployment = next(m for m in manifests if m["kind"] == "Deployment")
    deployment["spec"]["replicas"] = "two"
    assert any("replicas" in problem or "two" in problem for problem in check.schema_problems(manifests))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda c: c.pop("readinessProbe"), "no readinessProbe"),
        (lambda c: c["resources"].pop("limits"), "no limits"),
        (lambda c: c["securityContext"].update(readOnlyRootFilesystem=False), "writable"),
        (lambda c: c.update(image="openmint:latest"), "not pinned"),
        (lambda c: c["env"].append({"name": "OPENMINT_NATS_PASSWORD", "value": "x"}), "secret"),
    ],
)
def test_broken_rule_is_seen(check: ModuleType, break_it: object, message: str) -> None:
    manifests = copy.deepcopy(check.render({}))
    deployment = next(m for m in manifests if m["kind"] == "Deployment")
    break_it(deployment["spec"]["template"]["spec"]["containers"][0])  # type: ignore[operator]
    assert any(message in problem for problem in check.rule_problems(manifests))


def test_gpu_values_reach_the_engines(check: ModuleType) -> None:
    manifests = check.render({"gpu": {"enabled": True, "count": 2}})
    engines = [m for m in manifests if m["kind"] == "StatefulSet"]
    limits = [m["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] for m in engines]
    assert [limit["nvidia.com/gpu"] for limit in limits] == ["2", "2"]


def test_what_engines_are_scaled_by_can_be_scraped(check: ModuleType) -> None:
    manifests = check.render({"metrics": {"port": 9555, "from": [{"namespaceSelector": {}}]}})
    with_pods = [m for m in manifests if "template" in m.get("spec", {})]
    pods = {m["metadata"]["name"].rpartition("-")[2]: m["spec"]["template"] for m in with_pods}
    for name in ("scheduler", "serve"):
        assert pods[name]["metadata"]["annotations"]["prometheus.io/port"] == "9555"
        environment = pods[name]["spec"]["containers"][0]["env"]
        assert {"name": "OPENMINT_METRICS_PORT", "value": "9555"} in environment
    assert pods["gateway"]["metadata"]["annotations"]["prometheus.io/port"] == "8080"
    closed = next(m for m in manifests if m["metadata"]["name"].endswith("-closed"))
    assert {"port": "metrics", "protocol": "TCP"} in closed["spec"]["ingress"][1]["ports"]
