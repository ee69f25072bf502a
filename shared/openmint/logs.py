"""structlog, set up once per process: one JSON line per happening, with everything bound to it.

Bind with `structlog.contextvars.bound_contextvars`; the bus's middleware does so for each message.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from openmint.settings import CommonSettings

LONGEST_VALUE = 2000
"""Characters of one field: names inside adapters and messages are written by strangers."""


def configure_logging(service: str, settings: CommonSettings) -> None:
    """Send structlog and the standard library's loggers to standard output in the form that the settings name."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    structlog.contextvars.clear_contextvars()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        _flatten_extra,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _name_service(service),
        _shorten,
    ]
    last: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
        if settings.log_format == "json"
        else [structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())]
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for chatty in ("faststream", "nats", "httpx", "httpcore", "asyncio"):
        logging.getLogger(chatty).setLevel(max(level, logging.WARNING))
        # FastStream brings a handler of its own, which would write in another form.
        logging.getLogger(chatty).handlers.clear()
        logging.getLogger(chatty).propagate = True
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _name_service(service: str) -> structlog.typing.Processor:
    def name_service(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("service", service)
        return event

    return name_service


def _flatten_extra(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    # FastStream passes its fields nested.
    extra = event.pop("extra", None)
    if isinstance(extra, dict):
        for name, value in extra.items():
            event.setdefault(name, value)
    return event


def _shorten(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if isinstance(value, str) and len(value) > LONGEST_VALUE and name != "exception":
            event[name] = value[:LONGEST_VALUE] + "…"
    return event
