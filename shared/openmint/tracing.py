"""One trace from a request through its load to the first token: the few functions that services call.

Off unless OTEL_EXPORTER_OTLP_ENDPOINT or OPENMINT_TRACES_DIR is set. While it is off, `begin` gives one and the same
span that does nothing, and OpenTelemetry is not imported; a W3C trace context that came with a message or a request is
passed on all the same. `tracing_sdk.py` does the work when it is on.
"""

import os
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Protocol, Self

import structlog

from openmint.settings import CommonSettings

log = structlog.get_logger()

TRACEPARENT = "traceparent"
"""The W3C header, in HTTP and on the bus."""

Value = str | int | float | bool

current_traceparent: ContextVar[str | None] = ContextVar("current_traceparent", default=None)
"""The W3C trace context of what is being done; whatever is published or asked meanwhile carries it on."""


class Span(Protocol):
    """A piece of work with a beginning and an end. As a context manager it is also what its inside belongs to."""

    @property
    def traceparent(self) -> str | None:
        """What makes other work part of this; None when nothing is traced."""
        ...

    def note(self, **attributes: Value) -> None:
        """Say more about it."""
        ...

    def end(self, error: str = "") -> None:
        """It is over; a second end changes nothing. `error` is a code."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Tracer(Protocol):
    """Makes spans and brings them away (`tracing_sdk.SdkTracer`)."""

    def begin(
        self, name: str, parent: str | None, joined: str | None, started_ns: int | None, attributes: dict[str, Value]
    ) -> Span:
        """A new span; times are nanoseconds since the Unix epoch."""
        ...

    def close(self) -> None:
        """Bring away what has ended."""
        ...


class NoSpan:
    """Nothing is traced. Inside it the context that came from outside stays."""

    @property
    def traceparent(self) -> str | None:
        """Whatever came from outside."""
        return current_traceparent.get()

    def note(self, **attributes: Value) -> None:
        """Nothing."""

    def end(self, error: str = "") -> None:
        """Nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


NO_SPAN: Span = NoSpan()

_tracer: Tracer | None = None


def is_on() -> bool:
    """True when spans go anywhere."""
    return _tracer is not None


def begin_trace(name: str, *, parent: str | None = None, **attributes: Value) -> Span:
    """Begin what a caller asked for: part of the caller's trace when `parent` names one, else a trace of its own."""
    if _tracer is None:
        return NO_SPAN
    return _tracer.begin(name, parent, None, None, attributes)


def begin(
    name: str,
    *,
    parent: str | None = None,
    joined: str | None = None,
    started_ns: int | None = None,
    **attributes: Value,
) -> Span:
    """Begin a span inside a trace; where nothing around it is traced, it does nothing. `with begin(…)`, or `end()` it.

    `parent` is a traceparent, by default that of what is being done; `joined` is one of other work that this waits
    for together with others, such as a load that another request began.
    """
    if _tracer is None:
        return NO_SPAN
    around = parent or current_traceparent.get()
    return NO_SPAN if around is None else _tracer.begin(name, around, joined, started_ns, attributes)


class _Within:
    __slots__ = ("_token", "_traceparent")

    def __init__(self, traceparent: str | None) -> None:
        self._traceparent = traceparent
        self._token: Token[str | None] | None = None

    def __enter__(self) -> None:
        self._token = current_traceparent.set(self._traceparent)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            current_traceparent.reset(self._token)


def within(traceparent: str | None) -> AbstractContextManager[None]:
    """What is done inside belongs to this trace context, which came with a message or a request."""
    return _Within(traceparent)


def trace_headers() -> dict[str, str]:
    """The header that carries the trace on; empty when there is none."""
    traceparent = current_traceparent.get()
    return {TRACEPARENT: traceparent} if traceparent else {}


def start_tracing(service: str, settings: CommonSettings) -> None:
    """Trace from now on if the settings say so. A process without OpenTelemetry says that and works untraced."""
    global _tracer
    # The variable's other consumer is the SDK, so it keeps OpenTelemetry's own name.
    is_sent = bool(os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"))
    if _tracer is not None or not (settings.traces_dir or is_sent):
        return
    try:
        from openmint.tracing_sdk import make_tracer
    except ImportError as error:
        log.warning("tracing.unavailable", detail=f"install openmint[tracing]: {error}")
        return
    _tracer = make_tracer(service, settings.traces_dir, is_sent=is_sent)
    log.info("tracing.started", traces_dir=str(settings.traces_dir or ""), is_sent=is_sent)


def stop_tracing() -> None:
    """Bring away what has ended, and stop."""
    global _tracer
    tracer, _tracer = _tracer, None
    if tracer is not None:
        tracer.close()
