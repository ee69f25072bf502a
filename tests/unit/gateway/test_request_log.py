import json

import structlog

from openmint.settings import CommonSettings
from openmint_gateway.request_log import RequestLog


def test_a_line_has_the_form_of_all_other_lines():
    lines: list[str] = []
    with structlog.contextvars.bound_contextvars(trace_id="t"):
        RequestLog("gateway", lines.append).say(tenant="acme", total_ms=1.5, first_token_ms=None)
    (line,) = lines
    assert line.endswith("\n")
    told = json.loads(line)
    assert told.pop("timestamp").endswith("Z")
    assert told == {
        "event": "request.answered",
        "level": "info",
        "service": "gateway",
        "tenant": "acme",
        "total_ms": 1.5,
        "first_token_ms": None,
        "trace_id": "t",
    }


def test_a_console_gets_it_through_structlog(capsys):
    with structlog.testing.capture_logs() as seen:
        RequestLog.open("gateway", CommonSettings(log_format="console")).say(tenant="acme")
    assert seen == [{"event": "request.answered", "log_level": "info", "tenant": "acme"}]


def test_above_its_level_nothing_is_written(capsys):
    RequestLog.open("gateway", CommonSettings(log_format="json", log_level="error")).say(tenant="acme")
    assert capsys.readouterr().out == ""
