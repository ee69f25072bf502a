"""What engines did, counted from their own logs: exact, and it costs the engines nothing."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """Since the engine's start."""

    stages: int = 0
    """Revisions prepared; 0 for a stock engine."""

    attaches: int = 0
    """Adapters made resident, by command or, on a stock engine, on demand."""

    removals: int = 0
    slot_swaps: int = 0
    """Times that an adapter was copied into a slot."""

    def __sub__(self, earlier: "EngineCounters") -> "EngineCounters":
        return EngineCounters(
            self.stages - earlier.stages,
            self.attaches - earlier.attaches,
            self.removals - earlier.removals,
            self.slot_swaps - earlier.slot_swaps,
        )

    def __add__(self, other: "EngineCounters") -> "EngineCounters":
        return EngineCounters(
            self.stages + other.stages,
            self.attaches + other.attaches,
            self.removals + other.removals,
            self.slot_swaps + other.slot_swaps,
        )


def total(counters: dict[str, EngineCounters]) -> EngineCounters:
    """Over all engines."""
    return sum(counters.values(), EngineCounters())


@dataclass(frozen=True, slots=True)
class HostLine:
    """One thing that an engine host did, from its log."""

    event: str
    at_s: float
    """Seconds of the epoch."""

    fields: dict[str, Any]


WATCHED = ("adapter.staged", "adapter.attached", "adapter.removed")


def read_host_log(path: Path) -> Iterator[HostLine]:
    """Stages, attaches and removals in a host's log, oldest first."""
    if not path.exists():
        return
    with path.open(errors="replace") as file:
        for line in file:
            if not any(event in line for event in WATCHED):
                continue
            try:
                fields = cast(dict[str, Any], json.loads(line))
                at_s = datetime.fromisoformat(str(fields["timestamp"])).timestamp()
            except (ValueError, KeyError):
                continue  # Another line that quotes one of these words, or half a line at the end.
            if fields.get("event") in WATCHED:
                yield HostLine(str(fields["event"]), at_s, fields)


def count_host_log(path: Path) -> EngineCounters:
    """All of a host's log."""
    events = [line.event for line in read_host_log(path)]
    return EngineCounters(
        events.count("adapter.staged"), events.count("adapter.attached"), events.count("adapter.removed")
    )
