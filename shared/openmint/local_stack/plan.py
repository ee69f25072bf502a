"""What a local stack consists of, and the files it keeps in its state directory."""

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine of the local stack: `name:dtype:pool+pool`."""

    name: str
    dtype: str
    pools: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "EngineSpec":
        """Read `serve:bfloat16:serve` or `one:float32:serve+gate-fp32`. Raises: ValueError."""
        name, dtype, pools = text.split(":")
        return cls(name, dtype, tuple(pools.split("+")))


@dataclass(frozen=True, slots=True)
class StackPlan:
    """What the stack consists of. `engines` empty means no engine is started (the simulated or remote ones)."""

    state_dir: Path
    engines: tuple[EngineSpec, ...]
    base_folders: tuple[Path, ...]
    gateway_port: int = 8080
    services: tuple[str, ...] = ("scheduler", "trainer", "exporter", "evaluator", "keeper", "gateway")
    extra_env: Mapping[str, str] = field(default_factory=dict[str, str])
    """Settings given to every part, such as shorter leases in a chaos run."""
    copies: Mapping[str, int] = field(default_factory=dict[str, int])


DEFAULT_ENGINES = (EngineSpec("one", "float32", ("serve", "gate-fp32")),)
"""One fp32 engine in both pools: half the memory and half the start of two, and on a CPU without bf16 instructions also
the faster one. OPENMINT_ENGINES=serve:bfloat16:serve,gate:float32:gate-fp32 makes two."""


def plan_from_environment(state_dir: Path, gateway_port: int = 8080) -> StackPlan:
    """The plan of `openmint up`: OPENMINT_ENGINES overrides the default engine."""
    text = os.environ.get("OPENMINT_ENGINES", "")
    engines = tuple(EngineSpec.parse(part) for part in text.split(",")) if text else DEFAULT_ENGINES
    bases = state_dir / "bases"
    folders = tuple(sorted(p.parent for p in bases.glob("*/config.json")))
    return StackPlan(state_dir=state_dir, engines=engines, base_folders=folders, gateway_port=gateway_port)


def stack_file(state_dir: Path) -> Path:
    """Where the supervisor writes what it sees."""
    return state_dir / "stack.json"


def secret_file(state_dir: Path, name: str) -> str:
    """A secret of this stack, made once and kept in a file that only its owner reads."""
    folder = state_dir / "keys"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / name
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
    return path.read_text().strip()


def plan_as_json(plan: StackPlan) -> dict[str, object]:
    """The plan as the supervisor reads it back."""
    return {
        "state_dir": str(plan.state_dir),
        "engines": [f"{e.name}:{e.dtype}:{'+'.join(e.pools)}" for e in plan.engines],
        "base_folders": [str(folder) for folder in plan.base_folders],
        "gateway_port": plan.gateway_port,
        "services": list(plan.services),
        "extra_env": dict(plan.extra_env),
        "copies": dict(plan.copies),
    }


def plan_from_json(path: Path) -> StackPlan:
    """Read a plan that `plan_as_json` wrote."""
    body = json.loads(path.read_text())
    plan = StackPlan(
        state_dir=Path(body["state_dir"]),
        engines=tuple(EngineSpec.parse(text) for text in body["engines"]),
        base_folders=tuple(Path(text) for text in body["base_folders"]),
        gateway_port=int(body["gateway_port"]),
    )
    return replace(plan, services=tuple(body["services"]), extra_env=body["extra_env"], copies=body["copies"])
