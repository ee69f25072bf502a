"""`schemas/`: what openmint promises to people it does not know, one JSON Schema and one example per event version."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openmint.events.asyncapi import asyncapi_document
from openmint.events.base import Command, Event
from openmint.events.compatibility import compatibility_problems
from openmint.events.examples import examples
from openmint.events.registry import event_classes


def schema_name(event_class: type[Event]) -> str:
    """`train_requested.v1`."""
    return f"{event_class.area}_{event_class.verb}.v{event_class.version}"


def schema_of(event_class: type[Event]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of an event's body."""
    schema = event_class.model_json_schema()
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:openmint:events:{schema_name(event_class)}",
        "x-subject": event_class.subject_filter(),
    }
    if issubclass(event_class, Command):
        _say_what_strangers_may_add(schema)
    return head | schema


def example_of(event_class: type[Event]) -> dict[str, Any]:
    """The body of the example."""
    return examples()[event_class].model_dump(mode="json", exclude_none=True, exclude_unset=True)


def published_files() -> Iterator[tuple[str, str]]:
    """Path in `schemas/` and text of everything that is written there from the events."""
    for event_class in event_classes():
        name = schema_name(event_class)
        yield f"{name}.json", _text(schema_of(event_class))
        yield f"examples/{name}.json", _text(example_of(event_class))
    schemas = {schema_name(event_class): schema_of(event_class) for event_class in event_classes()}
    yield "asyncapi.json", _text(asyncapi_document(schemas))


def write_published(folder: Path) -> None:
    """Write everything into `folder`. What belongs to older versions stays."""
    for name, text in published_files():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def differences(folder: Path) -> list[str]:
    """How the folder differs from the classes, and what of it would break strangers; empty when it does not."""
    found: list[str] = []
    for name, text in published_files():
        path = folder / name
        if not path.exists():
            found.append(f"{name}: missing; run `make schemas`")
        elif path.read_text() != text:
            found.append(f"{name}: differs from the classes; run `make schemas` if the change is meant")
    for event_class in event_classes():
        path = folder / f"{schema_name(event_class)}.json"
        if path.exists():
            problems = compatibility_problems(json.loads(path.read_text()), schema_of(event_class))
            found += [f"{path.name}: {problem}" for problem in problems]
    return found


def _say_what_strangers_may_add(schema: dict[str, Any]) -> None:
    """A command's parts take `x_*` and refuse every other unknown field."""
    for part in (schema, *schema.get("$defs", {}).values()):
        if part.get("type") == "object" and part.get("additionalProperties") is True:
            part["additionalProperties"] = False
            part["patternProperties"] = {"^x_": {}}


def _text(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
