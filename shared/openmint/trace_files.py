"""Spans as JSON lines in a folder: written by each traced process, read by `openmint trace`.

A machine without a collector keeps its newest traces here; nothing else depends on them. Every file is bounded, and so
is their number.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from openmint.errors import NotFound

FILE_BYTES = 8 * 1024 * 1024
"""About 20,000 spans; a full file becomes `….old.jsonl` and the one before it is dropped."""

KEPT_FILES = 32
"""Older files, of processes that ended, are dropped when a process begins to write."""

ROOT_SPAN = "gateway.request"


class SpanPlace(BaseModel):
    """Names one span of one trace, in hexadecimal."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    trace: str
    span: str


class SpanRecord(SpanPlace):
    """A span that has ended; times are nanoseconds since the Unix epoch."""

    parent: str | None = None
    name: str
    service: str = ""
    started_ns: int
    ended_ns: int
    error: str = ""
    attributes: dict[str, str | int | float | bool] = Field(default_factory=dict)
    joined: list[SpanPlace] = Field(default_factory=list[SpanPlace])

    @property
    def took_ms(self) -> float:
        """From its beginning to its end."""
        return (self.ended_ns - self.started_ns) / 1e6


class TraceFile:
    """Where one process writes its spans. A full disk costs spans, never more."""

    def __init__(self, folder: Path, service: str, file_bytes: int = FILE_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _drop_old(folder)
        self.path = folder / f"{service}-{os.getpid()}.jsonl"
        self._file_bytes = file_bytes
        self._file = self.path.open("ab")

    def write(self, spans: Iterable[SpanRecord]) -> None:
        """Append. Raises: OSError."""
        if self._file.tell() > self._file_bytes:
            self._file.close()
            self.path.replace(self.path.with_suffix(".old.jsonl"))
            self._file = self.path.open("ab")
        self._file.write(b"".join(orjson.dumps(span.model_dump()) + b"\n" for span in spans))
        self._file.flush()

    def close(self) -> None:
        """Write no more."""
        self._file.close()


def _drop_old(folder: Path) -> None:
    ages: list[tuple[float, Path]] = []
    for path in folder.glob("*.jsonl"):
        with contextlib.suppress(OSError):
            ages.append((path.stat().st_mtime, path))
    for _, path in sorted(ages, reverse=True)[KEPT_FILES - 1 :]:
        path.unlink(missing_ok=True)


def read_spans(folder: Path, word: str = "") -> Iterator[SpanRecord]:
    """Every span of the folder in whose line `word` stands; a line that is half written is left out."""
    wanted = word.encode()
    for path in sorted(folder.glob("*.jsonl")):
        try:
            with path.open("rb") as lines:
                for line in lines:
                    if wanted in line:
                        with contextlib.suppress(ValidationError):
                            yield SpanRecord.model_validate_json(line)
        except OSError:
            continue


@dataclass(slots=True)
class SpanNode:
    """A span with what happened inside it, earliest first. `is_joined`: it belongs to another request's trace."""

    span: SpanRecord
    is_joined: bool = False
    inside: list["SpanNode"] = field(default_factory=list["SpanNode"])


def find_trace(folder: Path, wanted: str) -> list[SpanNode]:
    """A trace as trees, mostly one. `wanted` is the beginning of a trace id, a request id, `last` or `slowest`.

    Raises: NotFound.
    """
    trace = _find_id(folder, wanted)
    spans = list(read_spans(folder, trace))
    roots = _trees([span for span in spans if span.trace == trace])
    for node in walk(roots):
        for place in node.span.joined:
            # One level only: what a joined load joined itself is of no interest here.
            others = _trees([span for span in read_spans(folder, place.trace) if span.trace == place.trace])
            node.inside += [_as_joined(other) for other in walk(others) if other.span.parent == place.span]
    return roots


def walk(nodes: Iterable[SpanNode]) -> list[SpanNode]:
    """All nodes, each before what is inside it."""
    found: list[SpanNode] = []
    for node in nodes:
        found.append(node)
        found += walk(node.inside)
    return found


def _find_id(folder: Path, wanted: str) -> str:
    if wanted in ("last", "slowest"):
        requests = [span for span in read_spans(folder, ROOT_SPAN) if span.name == ROOT_SPAN]
        if requests:
            chosen = max(requests, key=lambda span: span.started_ns if wanted == "last" else span.took_ms)
            return chosen.trace
    else:
        for span in read_spans(folder, wanted):
            if span.trace.startswith(wanted) or span.attributes.get("request_id") == wanted:
                return span.trace
    raise NotFound(f"no trace {wanted[:80]!r} is kept in {folder}")


def _trees(spans: list[SpanRecord]) -> list[SpanNode]:
    nodes = {span.span: SpanNode(span) for span in spans}
    roots: list[SpanNode] = []
    for node in sorted(nodes.values(), key=lambda node: (node.span.started_ns, -node.span.ended_ns)):
        # A parent that is not here is the caller's own span, or of a process that was killed.
        around = nodes.get(node.span.parent or "")
        (around.inside if around is not None else roots).append(node)
    return roots


def _as_joined(node: SpanNode) -> SpanNode:
    return SpanNode(node.span, is_joined=True, inside=[_as_joined(inner) for inner in node.inside])
