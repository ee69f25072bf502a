import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import orjson
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from openmint import tracing
from openmint.bus.messages import command_headers
from openmint.errors import LoadTimeout, NotFound
from openmint.events import Command
from openmint.events.examples import examples
from openmint.events.serving import LoadRequested
from openmint.settings import CommonSettings
from openmint.trace_files import SpanNode, TraceFile, find_trace, read_spans, walk

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Tracing is on, into this folder; `tracing.stop_tracing()` brings the spans there."""
    tracing.start_tracing("gateway", CommonSettings(state_dir=tmp_path, traces_dir=tmp_path / "traces"))
    yield tmp_path / "traces"
    tracing.stop_tracing()


def load_request() -> Command:
    request = examples()[LoadRequested]
    assert isinstance(request, Command)
    return request


def names(nodes: list[SpanNode]) -> list[str]:
    return [node.span.name for node in walk(nodes)]


@pytest.mark.slow
def test_while_it_is_off_nothing_is_made_and_opentelemetry_is_not_imported():
    assert tracing.begin_trace("gateway.request", policy="acme/support") is tracing.NO_SPAN
    program = (
        "import sys; import openmint.tracing, openmint_gateway.app, openmint_scheduler.app; "
        "sys.exit(', '.join(name for name in sys.modules if name.startswith('opentelemetry.sdk')) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_while_it_is_off_a_context_from_outside_is_still_carried_on():
    request = load_request()
    with tracing.within(CALLER), tracing.begin_trace("gateway.request") as span:
        assert span.traceparent == CALLER
        assert command_headers(request, "test")["traceparent"] == CALLER
    assert "traceparent" not in command_headers(request, "test")


def test_off_costs_less_than_a_few_microseconds():
    count = 20_000
    began = time.perf_counter()
    for _ in range(count):
        with tracing.begin_trace("gateway.request", route="/v1/completions"):
            pass
    assert (time.perf_counter() - began) / count < 20e-6


async def test_spans_of_tasks_and_messages_form_one_tree(folder: Path):
    async def load() -> None:
        headers = command_headers(load_request(), "gateway")
        with tracing.within(None), tracing.begin("scheduler.load", parent=headers["traceparent"]) as span:
            tracing.begin("scheduler.queue", started_ns=time.time_ns() - 5_000_000).end()
            span.note(engine="one")

    with tracing.begin_trace("gateway.request", parent=CALLER, request_id="r-1"):
        with tracing.begin("gateway.wait"):
            await asyncio.create_task(load())
        tracing.begin("gateway.first_token").end()
    tracing.stop_tracing()
    roots = find_trace(folder, "r-1")
    assert names(roots) == [
        "gateway.request", "gateway.wait", "scheduler.load", "scheduler.queue", "gateway.first_token",
    ]  # fmt: skip
    spans = {node.span.name: node.span for node in walk(roots)}
    assert {span.trace for span in spans.values()} == {CALLER[3:35]}
    assert spans["gateway.request"].parent == CALLER[36:52]
    assert spans["scheduler.load"].attributes == {"engine": "one"}
    assert spans["scheduler.queue"].took_ms >= 5
    assert names(find_trace(folder, "last")) == names(find_trace(folder, CALLER[3:12])) == names(roots)


def test_a_load_that_another_request_began_is_shown_where_it_was_waited_for(folder: Path):
    with tracing.begin_trace("gateway.request", request_id="first"):
        wait = tracing.begin("gateway.wait")
        tracing.begin("scheduler.load", parent=wait.traceparent).end()
        wait.end()
    with tracing.begin_trace("gateway.request", request_id="second"):
        tracing.begin("gateway.wait", joined=wait.traceparent).end()
    tracing.stop_tracing()
    second = find_trace(folder, "second")
    assert names(second) == ["gateway.request", "gateway.wait", "scheduler.load"]
    assert [node.is_joined for node in walk(second)] == [False, False, True]


def test_an_error_is_said_by_its_code_and_a_parent_that_is_no_traceparent_begins_a_trace(folder: Path):
    with pytest.raises(LoadTimeout), tracing.begin_trace("gateway.wait", parent="not one"):
        raise LoadTimeout("too late")
    tracing.stop_tracing()
    (span,) = read_spans(folder)
    assert (span.error, span.parent) == ("load_timeout", None)


def test_outside_of_a_trace_nothing_is_begun(folder: Path):
    assert tracing.begin("scheduler.load") is tracing.NO_SPAN
    tracing.stop_tracing()
    assert list(read_spans(folder)) == []


def test_a_caller_who_wants_no_trace_gets_none(folder: Path):
    with tracing.begin_trace("gateway.request", parent=CALLER[:-2] + "00") as span:
        assert span.traceparent is not None
        assert span.traceparent.startswith(CALLER[:35])
    tracing.stop_tracing()
    assert list(read_spans(folder)) == []


def test_files_are_bounded_and_half_a_line_is_left_out(folder: Path, tmp_path: Path):
    tracing.begin_trace("gateway.request").end()
    tracing.stop_tracing()
    (span,) = read_spans(folder)
    file = TraceFile(tmp_path / "small", "gateway", file_bytes=1000)
    for _ in range(50):
        file.write([span])
    file.close()
    assert sum(path.stat().st_size for path in (tmp_path / "small").iterdir()) < 5000
    with file.path.open("ab") as torn:
        torn.write(orjson.dumps(span.model_dump())[:40])
    assert len(list(read_spans(tmp_path / "small"))) >= 2
    with pytest.raises(NotFound, match="nothing-like-it"):
        find_trace(folder, "nothing-like-it")


def test_spans_are_sent_to_a_collector_by_otlp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    tracing.start_tracing("scheduler", CommonSettings(state_dir=tmp_path))
    tracing.begin_trace("scheduler.load", policy="acme/support").end()
    tracing.stop_tracing()
    server.shutdown()
    server.server_close()
    (sent,) = ExportTraceServiceRequest.FromString(bodies[0]).resource_spans
    assert sent.scope_spans[0].spans[0].name == "scheduler.load"
    assert "openmint-scheduler" in str(sent.resource)
