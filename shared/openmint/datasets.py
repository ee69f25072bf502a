"""Rows of data as people have them, as JSON Lines: OpenAI chat, prompt/completion, and the other forms of `row_forms`.

Here their form is checked and their canonical bytes made; what of a row is learnt is the trainer's business.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from pydantic import JsonValue

from openmint.adapters.strict_json import NotStrict, read_strict_json
from openmint.errors import BadDataset
from openmint.row_forms import (
    NOT_RENDERED,
    JsonRow,
    check_messages,
    check_preference,
    check_prompt,
    check_tokens,
    form_of,
)

MAX_ROWS = 1_000_000
MAX_BYTES = 1 << 30
"""Rows are held in memory while a job trains."""

MAX_LINE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class CanonicalDataset:
    """Checked rows, and the bytes by which they are named."""

    rows: int
    data: bytes
    digest: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row of either form: what stands before the completion, and the completion.

    A chat row has `prompt_messages` (all but its last message) and no `prompt`; the other form is the other way round.
    """

    completion: str
    prompt: str | None = None
    prompt_messages: tuple[Message, ...] | None = None

    @property
    def is_chat(self) -> bool:
        """True when the base's chat template renders the prompt."""
        return self.prompt_messages is not None


def rows_from_bytes(data: bytes, field: str = "dataset") -> list[Row]:
    """The rows of a JSON Lines file, checked.

    Raises: BadDataset naming the line, from 1, and the field of the row; also when there are none or too many.
    """
    rows: list[Row] = []
    for number, body in _parse_lines(data, field):
        where = f"line {number}"
        if form_of(body) != "text":
            raise BadDataset(f"{where} is a row of {form_of(body)}; rows of text are read here", field=field)
        _check_row(body, where, field)
        rows.append(_row_of(body))
    if not rows:
        raise BadDataset("the dataset has no rows", field=field)
    return rows


def canonical_jsonl(rows: Sequence[JsonRow]) -> bytes:
    """The canonical JSON Lines of rows: sorted keys, no blanks, UTF-8, a newline after each. Raises: BadDataset."""
    return canonical_dataset(rows).data


def canonical_dataset(rows: Sequence[JsonRow], field: str = "dataset") -> CanonicalDataset:
    """Check the rows and make their canonical JSON Lines, whose sha256 names them.

    Raises: BadDataset naming the row, from 1, and its field.
    """
    check_rows(rows, field)
    lines: list[bytes] = []
    size = 0
    for number, row in enumerate(rows, start=1):
        lines.append(_line(row, number, field))
        size += len(lines[-1])
        if size > MAX_BYTES:
            raise BadDataset(f"the dataset is larger than {MAX_BYTES} bytes at row {number}", field=field)
    data = b"".join(lines)
    return CanonicalDataset(len(rows), data, f"sha256:{hashlib.sha256(data).hexdigest()}")


def read_json_lines(data: bytes, field: str = "dataset") -> list[dict[str, JsonValue]]:
    """The objects of a JSON Lines file; blank lines are skipped. Raises: BadDataset naming the line, from 1."""
    return [row for _, row in _parse_lines(data, field)]


def check_rows(rows: Sequence[JsonRow], field: str = "dataset") -> None:
    """Raises: BadDataset when there are none, too many, or one is of no form."""
    if not rows:
        raise BadDataset("the dataset has no rows", field=field)
    if len(rows) > MAX_ROWS:
        raise BadDataset(f"the dataset has {len(rows)} rows; the limit is {MAX_ROWS}", field=field)
    for number, row in enumerate(rows, start=1):
        _check_row(row, f"row {number}", field)


def completion_of(row: JsonRow) -> str:
    """The text that is to be learnt: the completion, or the content of the last message."""
    messages = row.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        return str(messages[-1].get("content") or "")
    return str(row.get("completion") or "")


def _parse_lines(data: bytes, field: str) -> Iterator[tuple[int, dict[str, JsonValue]]]:
    if len(data) > MAX_BYTES:
        raise BadDataset(f"the dataset has {len(data)} bytes; the limit is {MAX_BYTES}", field=field)
    count = 0
    # Split at newlines alone: U+2028 and others are text inside a JSON string.
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        if len(line) > MAX_LINE_BYTES:
            raise BadDataset(f"line {number} has {len(line)} bytes; the limit is {MAX_LINE_BYTES}", field=field)
        count += 1
        if count > MAX_ROWS:
            raise BadDataset(f"the dataset has more than {MAX_ROWS} rows", field=field)
        try:
            row = read_strict_json(line)
        except NotStrict as error:
            raise BadDataset(f"line {number} is not JSON: {error}", field=field) from error
        if not isinstance(row, dict):
            raise BadDataset(f"line {number} is not an object", field=field)
        yield number, cast("dict[str, JsonValue]", row)


def _check_row(row: JsonRow, where: str, field: str) -> None:
    for name in NOT_RENDERED:
        if row.get(name):
            raise BadDataset(f"{where}: {name} is not supported", field=field)
    match form_of(row):
        case "preference":
            check_preference(row, where, field)
        case "tokens":
            check_tokens(row, where, field)
        case "prompt":
            check_prompt(row, where, field)
        case "text":
            _check_text(row, where, field)


def _check_text(row: JsonRow, where: str, field: str) -> None:
    if "messages" in row:
        for name in ("prompt", "completion"):
            if name in row:
                raise BadDataset(f"{where} has both messages and {name}", field=field)
        _check_chat(row["messages"], where, field)
        return
    for name in ("prompt", "completion"):
        if name not in row:
            raise BadDataset(f"{where} has neither messages nor {name}", field=field)
        if not isinstance(row[name], str):
            raise BadDataset(f"{where}: {name} is not a text", field=field)
    if not row["completion"]:
        raise BadDataset(f"{where} has an empty completion", field=field)


def _check_chat(messages: JsonValue, where: str, field: str) -> None:
    check_messages(messages, f"{where}: messages", field)
    chat = cast("list[dict[str, JsonValue]]", messages)
    if chat[-1]["role"] != "assistant":
        raise BadDataset(f"{where} does not end with an assistant message", field=field)
    if not chat[-1]["content"]:
        raise BadDataset(f"{where}: messages[{len(chat) - 1}].content is empty: there is nothing to learn", field=field)


def _row_of(row: JsonRow) -> Row:
    messages = row.get("messages")
    if messages is None:
        return Row(completion=str(row["completion"]), prompt=str(row["prompt"]))
    chat = [Message(str(m["role"]), str(m["content"])) for m in cast("list[dict[str, JsonValue]]", messages)]
    return Row(completion=chat[-1].content, prompt_messages=tuple(chat[:-1]))


def _line(row: JsonRow, number: int, field: str) -> bytes:
    try:
        text = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode() + b"\n"
    except (ValueError, RecursionError) as error:
        raise BadDataset(f"row {number} can't be written as JSON: {str(error)[:200]}", field=field) from error
