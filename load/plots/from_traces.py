"""`python -m load.plots.from_traces FOLDER > events.jsonl`: the loads and requests in a stack's traces, as events."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from load.plots.events import LoadEvent, RequestEvent, RunEvent
from openmint.trace_files import SpanRecord, read_spans


def events_of(
    spans: Iterable[SpanRecord], zero_epoch_s: float | None = None
) -> list[RunEvent | RequestEvent | LoadEvent]:
    """Every traced load and request, in the order of their beginnings; zero is the earliest span, unless given."""
    every = sorted(spans, key=lambda span: span.started_ns)
    if not every:
        return []
    zero_ns = every[0].started_ns if zero_epoch_s is None else int(zero_epoch_s * 1e9)
    inside: dict[str, list[SpanRecord]] = {}
    for span in every:
        inside.setdefault(span.parent or "", []).append(span)
    found: list[RunEvent | RequestEvent | LoadEvent] = [RunEvent(title="from traces")]
    for span in every:
        if span.name == "scheduler.load":
            found.append(_load(span, inside.get(span.span, []), zero_ns))
        elif span.name == "gateway.request":
            found.append(_request(span, inside.get(span.span, []), zero_ns))
    return found


def _load(span: SpanRecord, parts: list[SpanRecord], zero_ns: int) -> LoadEvent:
    ended: dict[str, SpanRecord] = {part.name: part for part in parts}  # The last try of each part speaks.
    queue, stage, attach = (ended.get(f"scheduler.{name}") for name in ("queue", "stage", "attach"))
    outcome: Literal["resident", "failed", "cancelled"] = "resident"
    if span.error:
        outcome = "cancelled" if span.error == "cancelled" else "failed"
    end_t = (span.ended_ns - zero_ns) / 1e9
    return LoadEvent(
        t=(span.started_ns - zero_ns) / 1e9,
        placed_t=(queue.ended_ns - zero_ns) / 1e9 if queue is not None else None,
        staged_t=(stage.ended_ns - zero_ns) / 1e9 if stage is not None else None,
        attaching_t=(attach.started_ns - zero_ns) / 1e9 if attach is not None else None,
        resident_t=end_t if outcome == "resident" else None,
        ended_t=end_t,
        engine=str(span.attributes.get("engine", "")),
        policy=str(span.attributes.get("policy", "")),
        load_class=str(span.attributes.get("load_class", "interactive")),
        outcome=outcome,
    )


def _request(span: SpanRecord, parts: list[SpanRecord], zero_ns: int) -> RequestEvent:
    first = next((part for part in parts if part.name == "gateway.first_token" and not part.error), None)
    outcome = str(span.attributes.get("outcome", "answered"))
    return RequestEvent(
        t=(span.started_ns - zero_ns) / 1e9,
        ttft_s=(first.ended_ns - span.started_ns) / 1e9 if first is not None else None,
        total_s=span.took_ms / 1e3,
        is_cold=bool(span.attributes.get("was_cold", False)),
        policy=str(span.attributes.get("policy", "")),
        tenant=str(span.attributes.get("tenant", "")),
        engine=str(span.attributes.get("engine", "")),
        outcome="answered" if outcome == "answered" else "refused" if outcome == "refused" else "failed",
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the events; exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m load.plots.from_traces", description="Traces as events of a run")
    parser.add_argument("folder", type=Path, help="where a stack kept its traces")
    parser.add_argument("--zero", type=float, help="the run's zero, in seconds since the Unix epoch")
    parser.add_argument("--loads", action="store_true", help="only the loads: the run's clients recorded its requests")
    given = parser.parse_args(arguments)
    for event in events_of(read_spans(given.folder), given.zero):
        if given.loads and not isinstance(event, LoadEvent):
            continue
        print(event.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
