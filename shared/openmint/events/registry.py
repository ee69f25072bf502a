"""Every event by its type, and the published form of each: `schemas/`.

`python -m openmint.events.registry --write schemas` writes JSON Schemas, examples and the AsyncAPI document;
`--check schemas` exits non-zero when the tree differs from the classes. Write with the locked pydantic: its output
differs between releases.
"""

import argparse
import sys
from pathlib import Path

from openmint import events
from openmint.events.base import Event


def event_classes() -> list[type[Event]]:
    """Every event with a subject of its own, ordered by type."""
    found = [value for name in events.__all__ if _is_event(value := getattr(events, name))]
    return sorted(found, key=lambda event_class: event_class.event_type())


def _is_event(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Event) and hasattr(value, "verb")


_by_type: dict[str, type[Event]] = {}


def find_event_class(event_type: str) -> type[Event] | None:
    """The class of `openmint.<area>.<verb>.v<N>`, or None."""
    if not _by_type:
        _by_type.update({event_class.event_type(): event_class for event_class in event_classes()})
    return _by_type.get(event_type)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    from openmint.events.published import differences, write_published

    parser = argparse.ArgumentParser(description="The published form of every event")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", type=Path, metavar="FOLDER", help="write schemas, examples and asyncapi.json")
    action.add_argument("--check", type=Path, metavar="FOLDER", help="fail when the folder differs from the classes")
    given = parser.parse_args(arguments)
    if given.write is not None:
        write_published(given.write)
        return 0
    found = differences(given.check)
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
