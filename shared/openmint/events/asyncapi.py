"""The AsyncAPI 3.0 document: every channel of the bus, who sends on it, and in which stream its messages lie."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from openmint.bus.streams import CONSUMERS, STREAMS, stream_of
from openmint.events.base import Command, Event
from openmint.events.registry import event_classes
from openmint.events.serving import LoadRequested

HEADERS = {
    "type": "object",
    "description": "CloudEvents 1.0, binary mode. A command may come without any header.",
    "properties": {
        "ce-specversion": {"type": "string", "const": "1.0"},
        "ce-id": {"type": "string", "description": "Names the occurrence; equal on every delivery and replay"},
        "ce-type": {"type": "string", "description": "The first four tokens of the subject"},
        "ce-source": {"type": "string"},
        "ce-time": {"type": "string", "format": "date-time"},
        "ce-causationid": {"type": "string", "description": "The ce-id that led to this one"},
        "traceparent": {"type": "string", "description": "W3C trace context"},
        "Nats-Msg-Id": {"type": "string", "description": "The stream drops a second message with the same id"},
    },
}


def asyncapi_document(schemas: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The document; `schemas` maps `train_requested.v1` to its JSON Schema."""
    classes = event_classes()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "openmint",
            "version": _version(),
            "description": "Subjects are openmint.<area>.<verb>.v<N>.<tenant>.<id>; the tenant is the subject's. "
            "Bodies are plain JSON. Handlers meet messages more than once and out of order.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {_name(event): _channel(event) for event in classes},
        "operations": {_name(event): _operation(event) for event in classes},
        "components": {
            "messages": {_name(event): _message(event) for event in classes},
            "schemas": {name.replace(".", "-"): schema for name, schema in schemas.items()},
        },
        "x-streams": {
            plan.name: {
                "description": plan.description,
                "subjects": list(plan.subjects),
                "retention": str(plan.retention.value),
                "max_age_s": plan.max_age_s,
                "max_bytes": plan.max_bytes,
            }
            for plan in STREAMS
        },
    }


def _channel(event: type[Event]) -> dict[str, Any]:
    is_load = event is LoadRequested
    names = ["base", "tenant", "id"] if is_load else ["tenant", "id"]
    stream = stream_of(event.subject_filter())
    parameters = {
        "base": {"description": "The base model"},
        "tenant": {"description": "Whose message it is; _ for facts about engines"},
        "id": {"description": "What the message is about; of a request, any token of the sender's"},
    }
    return {
        "address": ".".join([event.event_type(), *(f"{{{name}}}" for name in names)]),
        "messages": {_name(event): {"$ref": f"#/components/messages/{_name(event)}"}},
        "parameters": {name: parameters[name] for name in names},
        "x-stream": stream.name if stream is not None else None,
        "x-consumers": sorted(plan.name for plan in CONSUMERS if plan.event is event),
    }


def _operation(event: type[Event]) -> dict[str, Any]:
    """Seen from openmint: it receives commands and sends facts."""
    return {
        "action": "receive" if issubclass(event, Command) else "send",
        "channel": {"$ref": f"#/channels/{_name(event)}"},
        "summary": _summary(event),
    }


def _message(event: type[Event]) -> dict[str, Any]:
    return {
        "name": event.event_type(),
        "title": event.__name__,
        "summary": _summary(event),
        "headers": HEADERS,
        "payload": {"$ref": f"#/components/schemas/{event.area}_{event.verb}-v{event.version}"},
    }


def _summary(event: type[Event]) -> str:
    return (event.__doc__ or "").strip().splitlines()[0]


def _name(event: type[Event]) -> str:
    return f"{event.area}_{event.verb}_v{event.version}"


def _version() -> str:
    try:
        return version("openmint")
    except PackageNotFoundError:
        return "0"
