"""One JSON line per happening, whoever logs it."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from openmint.logs import LONGEST_VALUE, configure_logging
from openmint.settings import CommonSettings


@pytest.fixture(autouse=True)
def former_logging() -> Iterator[None]:
    """Put logging back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_line_has_the_event_its_fields_and_what_is_bound(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("trainer", CommonSettings())
    with structlog.contextvars.bound_contextvars(job_id="j-1"):
        structlog.get_logger().info("job.completed", steps=60)
    structlog.get_logger().info("job.started")
    first, second = _lines(capsys)
    assert first["event"] == "job.completed"
    assert (first["steps"], first["job_id"], first["service"], first["level"]) == (60, "j-1", "trainer", "info")
    assert "job_id" not in second


def test_standard_library_loggers_come_out_alike_and_nested_fields_are_flat(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("trainer", CommonSettings())
    logging.getLogger("faststream").warning("broken", extra={"extra": {"subject": "a.b"}})
    (line,) = _lines(capsys)
    assert (line["event"], line["subject"], line["service"]) == ("broken", "a.b", "trainer")


def test_strangers_text_is_one_line_and_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("trainer", CommonSettings())
    structlog.get_logger().info("adapter.refused", name="a\r\nb\x1b[31m" + "x" * 10_000)
    (line,) = _lines(capsys)
    assert len(str(line["name"])) <= LONGEST_VALUE + 1


def test_exception_is_in_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("trainer", CommonSettings())
    try:
        raise ValueError("a bug")
    except ValueError:
        structlog.get_logger().exception("handler.failed")
    (line,) = _lines(capsys)
    assert "ValueError: a bug" in str(line["exception"])


def test_level_is_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("trainer", CommonSettings(log_level="warning"))
    structlog.get_logger().info("job.started")
    structlog.get_logger().warning("job.failed")
    assert [line["event"] for line in _lines(capsys)] == ["job.failed"]
