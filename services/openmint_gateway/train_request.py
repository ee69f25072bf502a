"""Reading a training request, from the bus or from HTTP: strictly, with an error that names the field."""

import re
from collections.abc import Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from openmint.bus.strict_json import parse_object
from openmint.errors import BadRequest
from openmint.events import TrainRequested

_UNKNOWN_FIELD = re.compile(r"unknown field '([^']{1,80})'")


class BadSchema(BadRequest):
    """The request does not have the published form."""

    code = "bad_schema"


def parse_train_request(body: bytes) -> TrainRequested:
    """Raises: BadEvent when it can't be read at all, BadSchema naming the first wrong field."""
    content = parse_object(body)
    try:
        return TrainRequested.model_validate(content)
    except ValidationError as error:
        raise schema_error(error.errors(include_url=False, include_input=False)) from error


def schema_error(problems: Sequence[ErrorDetails], within: str = "") -> BadSchema:
    """The first problem as one sentence; how many more there are is said too."""
    first = problems[0]
    path = [str(part) for part in first["loc"] if part != within]
    unknown = _UNKNOWN_FIELD.search(first["msg"])
    message = first["msg"].removeprefix("Value error, ")
    if unknown:
        path.append(unknown.group(1))
    elif first["type"] == "missing":
        message = "this field is required"
    field = ".".join(path)[:200]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return BadSchema(f"{field}: {message}{more}" if field else f"{message}{more}", field=field or None)
