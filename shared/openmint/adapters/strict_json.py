"""JSON from outside, read strictly: no duplicate keys, no NaN, no endless nesting."""

import json
from collections.abc import Callable
from typing import Any

from openmint.adapters.escaping import shown


class NotStrict(ValueError):
    """The text is not JSON, or not of the strict kind."""


def read_strict_json(raw: bytes) -> Any:
    """Parse. Raises: NotStrict with the reason, safe to show."""
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse("constant"))
    except NotStrict:
        raise
    except UnicodeDecodeError as error:
        raise NotStrict(f"not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise NotStrict("nested too deeply") from error
    except json.JSONDecodeError as error:
        raise NotStrict(f"not JSON at character {error.pos}: {error.msg}") from error
    except ValueError as error:
        raise NotStrict("a number is too long") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise NotStrict(f"the key {shown(key)} stands there twice")
        found[key] = value
    return found


def _refuse(what: str) -> Callable[[str], float]:
    def refuse(text: str) -> float:
        raise NotStrict(f"{text} is not a JSON {what}")

    return refuse
