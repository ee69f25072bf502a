"""JSON as we take it from strangers: no NaN or Infinity, no key twice, no deep nesting, valid UTF-8."""

import json
import re
from typing import Any

import orjson

from openmint.errors import BadEvent, CallerMistake

MAX_DEPTH = 64
"""Chat rows nest five deep. Parsers recurse, and the stack is theirs."""

_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_BRACKETS = re.compile(rb"[\[\]{}]")


def parse_object(data: bytes, mistake: type[CallerMistake] = BadEvent) -> dict[str, Any]:
    """The JSON object in `data`. Raises: `mistake`, saying what is wrong with it."""
    if not data.strip():
        raise mistake("the body is empty; a JSON object is expected")
    if _depth(data) > MAX_DEPTH:
        raise mistake(f"the body is nested more than {MAX_DEPTH} deep")
    try:
        orjson.loads(data)
        value = json.loads(data, object_pairs_hook=_without_doubles)
    except ValueError as error:
        raise mistake(f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise mistake(f"the body is a JSON {_kind(value)}; an object is expected")
    return value


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {double[:80]!r} occurs twice")
    return found


def _depth(data: bytes) -> int:
    depth = deepest = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub(b"", data)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _kind(value: object) -> str:
    names: dict[type[object], str] = {list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
