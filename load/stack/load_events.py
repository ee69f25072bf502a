"""The loads of a run, read from the logs of its parts, in the form that simulated timings are fitted from.

One record a load: `stage_ms` (0 when a prepared copy was there), `attach_ms` of all that were attached in the same gap,
`batch`, how many those were, and `wait_ms` from asking to resident.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from load.stack.counters import read_host_log

SAME_GAP_S = 0.02
"""The scheduler notes all loads of one batch in one go; two batches are a step of the engine apart."""


@dataclass(frozen=True, slots=True)
class LoadRecord:
    """One load that became resident."""

    engine: str
    revision: str
    at_s: float
    """Seconds of the epoch."""

    stage_ms: float
    attach_ms: float
    batch: int
    wait_ms: float


def read_loads(scheduler_log: Path, host_logs: Mapping[str, Path]) -> list[LoadRecord]:
    """Every load that the scheduler saw attached, oldest first; `host_logs` by engine name."""
    stages = {name: _stages(path) for name, path in host_logs.items()}
    records: list[LoadRecord] = []
    for batch in _batches(list(_attached(scheduler_log))):
        attach_ms = sum(float(line["attach_ms"]) for line in batch)
        for line in batch:
            engine, revision = str(line["engine"]), str(line["revision"])
            # A stage belongs to the first load after it; a later load of the revision found its copy.
            stage_ms = stages.get(engine, {}).pop(revision, 0.0)
            wait_ms = float(line["wait_s"]) * 1000
            records.append(LoadRecord(engine, revision, line["at_s"], stage_ms, attach_ms, len(batch), wait_ms))
    return records


def write_loads(records: Sequence[LoadRecord], path: Path) -> None:
    """As JSON lines."""
    path.write_text("".join(json.dumps(asdict(record)) + "\n" for record in records))


def _stages(path: Path) -> dict[str, float]:
    lines = (line for line in read_host_log(path) if line.event == "adapter.staged")
    return {str(line.fields["revision"]): float(line.fields["stage_ms"]) for line in lines}


def _attached(path: Path) -> Iterator[dict[str, Any]]:
    for text in path.read_text(errors="replace").splitlines():
        if '"adapter.attached"' not in text:
            continue
        try:
            line = cast(dict[str, Any], json.loads(text))
        except ValueError:
            continue  # Half a line at the end.
        yield line | {"at_s": datetime.fromisoformat(str(line["timestamp"])).timestamp()}


def _batches(lines: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Lines of one engine that follow each other at once."""
    batch: list[dict[str, Any]] = []
    for line in lines:
        if batch and (line["engine"] != batch[-1]["engine"] or line["at_s"] - batch[-1]["at_s"] > SAME_GAP_S):
            yield batch
            batch = []
        batch.append(line)
    if batch:
        yield batch
