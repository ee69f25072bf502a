"""The one line of every inference request, written without the stages that other lines go through.

structlog over the standard library costs a quarter of a millisecond a line, a third of what a request cost in all;
this writes the same fields in the same form. Where logs are not JSON, structlog writes it like any other.
"""

import sys
from collections.abc import Callable
from datetime import UTC, datetime

import orjson
import structlog

from openmint.settings import CommonSettings

log = structlog.get_logger()

EVENT = "request.answered"

Field = str | int | float | bool | None


def _through_structlog(**fields: Field) -> None:
    log.info(EVENT, **fields)


class RequestLog:
    """Writes `request.answered`."""

    def __init__(self, service: str = "", write: Callable[[str], object] | None = None) -> None:
        self._service = service
        self._write = write

    @classmethod
    def open(cls, service: str, settings: CommonSettings) -> "RequestLog":
        """As the settings say."""
        if settings.log_format != "json":
            return cls()
        return cls(service, _write_line if settings.log_level in ("debug", "info") else _write_nothing)

    def say(self, **fields: Field) -> None:
        """One request is over."""
        if self._write is None:
            _through_structlog(**fields)
            return
        stamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        bound = structlog.contextvars.get_contextvars()
        line = {**bound, **fields, "event": EVENT, "level": "info", "timestamp": stamp, "service": self._service}
        self._write(orjson.dumps(line, default=str, option=orjson.OPT_APPEND_NEWLINE).decode())


def _write_line(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()


def _write_nothing(_: str) -> None:
    """Below the level that is logged."""
