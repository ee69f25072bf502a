"""Tracing with OpenTelemetry's SDK: imported only by `openmint.tracing`, and only when tracing is on.

The SDK's own environment variables apply: OTEL_TRACES_SAMPLER for a share of the requests, OTEL_EXPORTER_OTLP_* for
where and how they are sent.
"""

import re
from collections.abc import Sequence
from contextvars import Token
from pathlib import Path
from types import TracebackType
from typing import Self

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags, set_span_in_context
from opentelemetry.trace import Span as SdkApiSpan

from openmint.trace_files import SpanPlace, SpanRecord, TraceFile
from openmint.tracing import Value, current_traceparent

EXPORT_EVERY_MS = 500
"""`openmint trace last` sees a request so soon after its end."""

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


class SdkSpan:
    """`openmint.tracing.Span` on an SDK span."""

    __slots__ = ("_span", "_token", "traceparent")

    def __init__(self, span: SdkApiSpan) -> None:
        self._span = span
        self._token: Token[str | None] | None = None
        context = span.get_span_context()
        self.traceparent: str | None = (
            f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
        )

    def note(self, **attributes: Value) -> None:
        """Say more about it."""
        self._span.set_attributes(attributes)

    def end(self, error: str = "") -> None:
        """It is over; a second end changes nothing."""
        if self._span.is_recording():
            if error:
                self._span.set_status(Status(StatusCode.ERROR, error))
            self._span.end()

    def __enter__(self) -> Self:
        self._token = current_traceparent.set(self.traceparent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            current_traceparent.reset(self._token)
        self.end("" if kind is None else str(getattr(error, "code", kind.__name__)))


class SdkTracer:
    """`openmint.tracing.Tracer` on the SDK."""

    def __init__(self, service: str, exporters: Sequence[SpanExporter]) -> None:
        self._provider = TracerProvider(resource=Resource.create({"service.name": f"openmint-{service}"}))
        for exporter in exporters:
            self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=EXPORT_EVERY_MS))
        self._tracer = self._provider.get_tracer("openmint")

    def begin(
        self, name: str, parent: str | None, joined: str | None, started_ns: int | None, attributes: dict[str, Value]
    ) -> SdkSpan:
        """A new span; a parent that can't be read begins a trace of its own."""
        around, other = _context_of(parent), _context_of(joined)
        context = set_span_in_context(NonRecordingSpan(around), Context()) if around is not None else Context()
        links = [Link(other)] if other is not None else None
        return SdkSpan(
            self._tracer.start_span(name, context=context, attributes=attributes, links=links, start_time=started_ns)
        )

    def close(self) -> None:
        """Bring away what has ended."""
        self._provider.shutdown()


class JsonLinesExporter(SpanExporter):
    """Spans into a `TraceFile`."""

    def __init__(self, file: TraceFile, service: str) -> None:
        self._file = file
        self._service = service

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write them; what the disk does not take is lost."""
        try:
            self._file.write(_record(span, self._service) for span in spans)
        except (OSError, ValueError):
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the file."""
        self._file.close()


def make_tracer(service: str, traces_dir: Path | None, *, is_sent: bool) -> SdkTracer:
    """Spans go to files in `traces_dir`, and when `is_sent` by OTLP over HTTP to where OTEL_EXPORTER_OTLP_* says."""
    exporters: list[SpanExporter] = []
    if traces_dir is not None:
        exporters.append(JsonLinesExporter(TraceFile(traces_dir, service), service))
    if is_sent:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporters.append(OTLPSpanExporter())
    return SdkTracer(service, exporters)


def _context_of(traceparent: str | None) -> SpanContext | None:
    found = _TRACEPARENT.fullmatch(traceparent or "")
    if found is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags & TraceFlags.SAMPLED))
    return context if context.is_valid else None


def _record(span: ReadableSpan, service: str) -> SpanRecord:
    context = span.get_span_context()
    assert context is not None
    return SpanRecord(
        trace=f"{context.trace_id:032x}",
        span=f"{context.span_id:016x}",
        parent=f"{span.parent.span_id:016x}" if span.parent is not None else None,
        name=span.name,
        service=service,
        started_ns=span.start_time or 0,
        ended_ns=span.end_time or 0,
        error=(span.status.description or "error") if span.status.status_code is StatusCode.ERROR else "",
        attributes={
            name: value if isinstance(value, str | int | float | bool) else str(value)
            for name, value in (span.attributes or {}).items()
        },
        joined=[
            SpanPlace(trace=f"{link.context.trace_id:032x}", span=f"{link.context.span_id:016x}") for link in span.links
        ],
    )
