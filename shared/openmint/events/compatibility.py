"""May a schema be published in place of an older one of the same version? Says what would break, and whom.

Producers of commands and consumers of facts are strangers with old code. So in both, what was there stays: a removed
field, a field that becomes required, another type or a narrower range is a new version with a new subject.
"""

from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

_LOWER_BOUNDS = ("minimum", "exclusiveMinimum", "minLength", "minItems")
_UPPER_BOUNDS = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")


def compatibility_problems(old_schema: Schema, new_schema: Schema) -> list[str]:
    """What an old producer or consumer would trip over; empty when the change is additive."""
    return list(_problems(old_schema, new_schema, old_schema, new_schema, "", frozenset()))


def _problems(
    old: Schema, new: Schema, old_root: Schema, new_root: Schema, path: str, seen: frozenset[str]
) -> Iterator[str]:
    reference = old.get("$ref", "")
    if reference in seen:
        return
    seen = seen | {reference} if reference else seen
    old, new = _resolved(old, old_root), _resolved(new, new_root)
    place = path or "the event"
    old_kinds, new_kinds = _kinds(old, old_root), _kinds(new, new_root)
    if not old_kinds <= new_kinds:
        yield f"{place}: type {'/'.join(sorted(old_kinds - new_kinds))} is no longer allowed"
    if new_kinds - old_kinds - _widened(old_kinds):
        yield f"{place}: type {'/'.join(sorted(new_kinds - old_kinds))} is new, and old readers do not know it"
    yield from _narrowed(old, new, place)
    old_required, new_required = set(old.get("required", [])), set(new.get("required", []))
    old_fields, new_fields = old.get("properties", {}), new.get("properties", {})
    for name in sorted(set(old_fields) - set(new_fields)):
        yield f"{_join(path, name)}: the field is gone"
    for name in sorted(new_required - old_required):
        known = "has become required" if name in old_fields else "is new and required"
        yield f"{_join(path, name)}: the field {known}"
    for name in sorted(set(old_fields) & set(new_fields)):
        yield from _problems(old_fields[name], new_fields[name], old_root, new_root, _join(path, name), seen)
    if "items" in old and "items" in new:
        yield from _problems(old["items"], new["items"], old_root, new_root, f"{place}[]", seen)
    yield from _alternatives(old, new, old_root, new_root, path, seen)


def _alternatives(
    old: Schema, new: Schema, old_root: Schema, new_root: Schema, path: str, seen: frozenset[str]
) -> Iterator[str]:
    """Compare what is nullable, or one of several: alternatives are matched by their kind."""
    new_by_kind = {_kind(_resolved(part, new_root)): part for part in new.get("anyOf", [])}
    for part in old.get("anyOf", []):
        kind = _kind(_resolved(part, old_root))
        if kind in new_by_kind:
            yield from _problems(part, new_by_kind[kind], old_root, new_root, path, seen)


def _narrowed(old: Schema, new: Schema, place: str) -> Iterator[str]:
    gone = [value for value in old.get("enum", []) if "enum" in new and value not in new["enum"]]
    if gone:
        yield f"{place}: the values {gone} are gone"
    if "const" in new and new["const"] != old.get("const", new["const"]):
        yield f"{place}: the value is now {new['const']!r}"
    if "pattern" in new and new["pattern"] != old.get("pattern"):
        yield f"{place}: the pattern is now {new['pattern']!r}"
    for bounds, is_tighter in ((_LOWER_BOUNDS, _higher), (_UPPER_BOUNDS, _lower)):
        for bound in bounds:
            if bound in new and is_tighter(new[bound], old.get(bound)):
                yield f"{place}: {bound} went from {old.get(bound)} to {new[bound]}"


def _higher(new: float, old: float | None) -> bool:
    return old is None or new > old


def _lower(new: float, old: float | None) -> bool:
    return old is None or new < old


def _widened(old_kinds: frozenset[str]) -> frozenset[str]:
    # Every whole number is a number, and JSON writes them alike.
    return frozenset({"number"}) if "integer" in old_kinds else frozenset()


def _kinds(schema: Schema, root: Schema) -> frozenset[str]:
    if "anyOf" in schema:
        return frozenset(kind for part in schema["anyOf"] for kind in _kinds(_resolved(part, root), root))
    kind = _kind(schema)
    return frozenset({kind}) if kind else frozenset()


def _kind(schema: Schema) -> str:
    if "enum" in schema or "const" in schema:
        return str(schema.get("type", "string"))
    return str(schema.get("type", ""))


def _resolved(schema: Schema, root: Schema) -> Schema:
    reference = schema.get("$ref")
    return root.get("$defs", {}).get(reference.rpartition("/")[2], {}) if reference else schema


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
