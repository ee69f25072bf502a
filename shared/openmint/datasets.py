"""Rows of data as people have them: OpenAI chat rows and prompt/completion rows, as JSON Lines.

Here their form is checked and their canonical bytes made; what of a row is learnt is the trainer's business.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from openmint.errors import BadDataset

JsonRow = Mapping[str, JsonValue]

MAX_ROWS = 1_000_000
ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


@dataclass(frozen=True, slots=True)
class CanonicalDataset:
    """Checked rows, and the bytes by which they are named."""

    rows: int
    data: bytes
    digest: str


def canonical_dataset(rows: Sequence[JsonRow], field: str = "dataset") -> CanonicalDataset:
    """Check the rows and make their canonical JSON Lines: sorted keys, no blanks, UTF-8, a newline after each.

    Raises: BadDataset naming the row, from 1.
    """
    check_rows(rows, field)
    data = b"".join(_line(row, number, field) for number, row in enumerate(rows, start=1))
    return CanonicalDataset(len(rows), data, f"sha256:{hashlib.sha256(data).hexdigest()}")


def read_json_lines(data: bytes, field: str = "dataset") -> list[dict[str, JsonValue]]:
    """The rows of a JSON Lines file; blank lines are skipped. Raises: BadDataset naming the line, from 1."""
    return list(_parse_lines(data, field))


def check_rows(rows: Sequence[JsonRow], field: str = "dataset") -> None:
    """Raises: BadDataset when there are none, too many, or one is of neither form."""
    if not rows:
        raise BadDataset("the dataset has no rows", field=field)
    if len(rows) > MAX_ROWS:
        raise BadDataset(f"the dataset has {len(rows)} rows; the limit is {MAX_ROWS}", field=field)
    for number, row in enumerate(rows, start=1):
        _check_row(row, number, field)


def completion_of(row: JsonRow) -> str:
    """The text that is to be learnt: the completion, or the content of the last message."""
    messages = row.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        return str(messages[-1].get("content") or "")
    return str(row.get("completion") or "")


def _parse_lines(data: bytes, field: str) -> Iterator[dict[str, JsonValue]]:
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise BadDataset(f"line {number} is not JSON: {str(error)[:200]}", field=field) from error
        if not isinstance(row, dict):
            raise BadDataset(f"line {number} is not an object", field=field)
        yield row


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _check_row(row: JsonRow, number: int, field: str) -> None:
    if "messages" in row:
        _check_messages(row["messages"], number, field)
        return
    for name in ("prompt", "completion"):
        if name not in row:
            raise BadDataset(f"row {number} has neither messages nor {name}", field=field)
        if not isinstance(row[name], str):
            raise BadDataset(f"row {number}: {name} is not a text", field=field)
    if not row["completion"]:
        raise BadDataset(f"row {number} has an empty completion", field=field)


def _check_messages(messages: JsonValue, number: int, field: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise BadDataset(f"row {number}: messages is not a list with at least one message", field=field)
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES or "content" not in message:
            raise BadDataset(f"row {number}: a message is not an object with a known role and a content", field=field)
    last = messages[-1]
    if not isinstance(last, dict) or last.get("role") != "assistant":
        raise BadDataset(f"row {number} does not end with an assistant message", field=field)


def _line(row: JsonRow, number: int, field: str) -> bytes:
    try:
        text = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode() + b"\n"
    except (ValueError, RecursionError) as error:
        raise BadDataset(f"row {number} can't be written as JSON: {str(error)[:200]}", field=field) from error
