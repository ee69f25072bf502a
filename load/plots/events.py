"""What a run records for its page: JSON lines, one event each. Readers ignore events and fields that they don't know.

`t` and all other `…_t` are seconds on one clock of the run's own, with any zero.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

OURS = "openmint"


def group_of(variant: str) -> str:
    """Of `dense: stock`, `dense`; empty when all are in one group."""
    return variant.rpartition(": ")[0]


def system_of(variant: str) -> str:
    """Of `dense: stock`, `stock`."""
    return variant.rpartition(": ")[2]


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    t: float = 0.0
    variant: str = OURS
    """Which system this is about: ours, or one of its peers. `dense: stock` is drawn beside other `dense: …`."""


class RunEvent(_Event):
    """What was run; its texts stand on top of the page."""

    event: Literal["run"] = "run"
    scenario: str = ""
    title: str = ""
    machine: str = ""


class RequestEvent(_Event):
    """A request that was wanted at `t`."""

    event: Literal["request"] = "request"
    ttft_s: float | None = None
    total_s: float | None = None
    load_class: str = "interactive"
    is_cold: bool = False
    wave: int = 0
    """Which repetition it belongs to; the cold requests of one wave make a staircase."""
    policy: str = ""
    tenant: str = ""
    engine: str = ""
    outcome: Literal["answered", "refused", "failed"] = "answered"


class LoadEvent(_Event):
    """A load that was asked for at `t`: in the queue until `placed_t`, staging until `staged_t`, attaching from
    `attaching_t` to `resident_t`. A stock server's load has `resident_t` alone."""

    event: Literal["load"] = "load"
    placed_t: float | None = None
    staged_t: float | None = None
    attaching_t: float | None = None
    resident_t: float | None = None
    ended_t: float | None = None
    """When it failed or was cancelled."""
    engine: str = ""
    policy: str = ""
    load_class: str = "interactive"
    outcome: Literal["resident", "failed", "cancelled"] = "resident"

    @property
    def last_t(self) -> float:
        """The latest moment that is known of it."""
        moments = (self.ended_t, self.resident_t, self.attaching_t, self.staged_t, self.placed_t)
        return next((moment for moment in moments if moment is not None), self.t)


class DepthEvent(_Event):
    """A sample: how many loads wait, by class, and how many are under way."""

    event: Literal["depth"] = "depth"
    waiting: dict[str, int] = {}
    under_way: int = 0


class MarkEvent(_Event):
    """Something that happened to the whole, such as the death of an engine."""

    event: Literal["mark"] = "mark"
    label: str = ""


KINDS: dict[str, type[_Event]] = {
    "run": RunEvent,
    "request": RequestEvent,
    "load": LoadEvent,
    "depth": DepthEvent,
    "mark": MarkEvent,
}

Recorded = RunEvent | RequestEvent | LoadEvent | DepthEvent | MarkEvent


@dataclass(slots=True)
class Recording:
    """All events of a run."""

    runs: list[RunEvent] = field(default_factory=list[RunEvent])
    requests: list[RequestEvent] = field(default_factory=list[RequestEvent])
    loads: list[LoadEvent] = field(default_factory=list[LoadEvent])
    depths: list[DepthEvent] = field(default_factory=list[DepthEvent])
    marks: list[MarkEvent] = field(default_factory=list[MarkEvent])

    def add(self, event: Recorded) -> None:
        """Put an event where its kind belongs."""
        match event:
            case RunEvent():
                self.runs.append(event)
            case RequestEvent():
                self.requests.append(event)
            case LoadEvent():
                self.loads.append(event)
            case DepthEvent():
                self.depths.append(event)
            case MarkEvent():
                self.marks.append(event)


class EventWriter:
    """Appends events to a file. Use as a context manager, or `close` it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, *events: Recorded) -> None:
        """Append; they are in the file when this returns."""
        self._file.writelines(event.model_dump_json(exclude_defaults=False) + "\n" for event in events)
        self._file.flush()

    def close(self) -> None:
        """No more."""
        self._file.close()


def read_recording(paths: Iterable[Path]) -> Recording:
    """Read files of events. Raises: ValueError, naming file and line, for a line that is no event of its kind."""
    recording = Recording()
    for path in paths:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if not line.strip():
                continue
            try:
                body: Any = json.loads(line)
                kind = KINDS.get(str(body.get("event")))
                if kind is not None:
                    event = kind.model_validate(body)
                    assert isinstance(event, Recorded)
                    recording.add(event)
            except (ValidationError, ValueError, AttributeError) as error:
                raise ValueError(f"{path}:{number} is no event: {error}") from error
    return recording
