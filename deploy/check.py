"""Renders, lints and validates the Helm chart, and holds it to our own rules; `make helm-check` runs it.

No cluster is needed: Helm runs as a library, and every manifest is checked strictly against the Kubernetes schemas.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from helm_python import Chart
from helm_python.chart import lint

CHART = Path(__file__).parent / "helm" / "openmint"
KUBERNETES = "1.34"
WARNING = 2

VARIANTS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "with GPUs": {"gpu": {"enabled": True, "count": 2, "runtimeClassName": "nvidia"}},
    "with autoscaling": {"autoscaling": {"enabled": True}},
    "gateway limited": {"networkPolicy": {"gatewayFrom": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}]}},
}

Manifest = dict[str, Any]


def render(values: dict[str, Any]) -> list[Manifest]:
    """All manifests of the chart with these values."""
    texts = Chart.load(str(CHART)).render(values, name="openmint", namespace="openmint").values()
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def schema_problems(manifests: list[Manifest]) -> Iterator[str]:
    """What the Kubernetes schemas object to; KEDA's own kinds are not in them and are left out."""
    for manifest in manifests:
        if manifest["apiVersion"].startswith("keda.sh/"):
            continue
        try:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{manifest['kind']}/{manifest['metadata']['name']}: {error}"


def rule_problems(manifests: list[Manifest]) -> Iterator[str]:
    """What our own rules object to: every pod is locked down, limited, probed and protected."""
    budgets = [m["spec"]["selector"]["matchLabels"] for m in manifests if m["kind"] == "PodDisruptionBudget"]
    for manifest in manifests:
        if manifest["kind"] not in ("Deployment", "StatefulSet", "Job"):
            continue
        where = f"{manifest['kind']}/{manifest['metadata']['name']}"
        pod = manifest["spec"]["template"]["spec"]
        if not pod["securityContext"].get("runAsNonRoot"):
            yield f"{where}: may run as root"
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{where}: mounts a service account token"
        if manifest["kind"] != "Job" and manifest["spec"]["selector"]["matchLabels"] not in budgets:
            yield f"{where}: has no PodDisruptionBudget"
        for container in pod["containers"]:
            yield from container_problems(where, container, needs_probes=manifest["kind"] != "Job")
    if not any(m["kind"] == "NetworkPolicy" for m in manifests):
        yield "there is no NetworkPolicy"


def container_problems(where: str, container: Manifest, needs_probes: bool) -> Iterator[str]:
    """The rules for one container."""
    security = container.get("securityContext", {})
    if not security.get("readOnlyRootFilesystem") or security.get("allowPrivilegeEscalation") is not False:
        yield f"{where}: root file system is writable or privileges may grow"
    if security.get("capabilities", {}).get("drop") != ["ALL"]:
        yield f"{where}: keeps capabilities"
    if container["image"].endswith(":latest") or ":" not in container["image"]:
        yield f"{where}: image {container['image']} is not pinned"
    for kind in ("requests", "limits"):
        if not {"cpu", "memory"} <= set(container.get("resources", {}).get(kind, {})):
            yield f"{where}: no {kind} for cpu and memory"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe") if needs_probes else ():
        if probe not in container:
            yield f"{where}: no {probe}"
    for variable in container.get("env", []):
        if any(word in variable["name"] for word in ("PASSWORD", "SECRET", "_KEY", "DSN")):
            yield f"{where}: secret {variable['name']} in the environment"


def problems() -> list[str]:
    """Everything wrong with the chart, over all variants of its values."""
    found: list[str] = []
    report = lint(str(CHART), strict=True)
    found += [f"lint: {m['path']}: {m['error']}" for m in report["messages"] if m["severity"] >= WARNING]
    for name, values in VARIANTS.items():
        manifests = render(values)
        for problem in [*schema_problems(manifests), *rule_problems(manifests)]:
            found.append(f"{name}: {problem}")
        print(f"{name}: {len(manifests)} manifests")
    return found


def main() -> int:
    """Print problems; the exit code says whether there are any."""
    found = problems()
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
