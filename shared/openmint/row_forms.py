"""The forms that a row of data may have: a text to learn, a preference, a prompt with the answer that completions to it
are compared with, or tokens with what is known of each.

A recipe reads some of them. The form of a row shows in its keys, so that data can be put before anybody trains on it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import JsonValue

from openmint.adapters.escaping import shown
from openmint.errors import BadDataset

JsonRow = Mapping[str, JsonValue]
Form = Literal["text", "preference", "prompt", "tokens"]

FORM_OF_RECIPE: dict[str, tuple[Form, ...]] = {
    "sft": ("text",),
    "dpo": ("preference",),
    "distillation": ("tokens",),
    "weights": ("tokens",),
    "grpo": ("prompt", "text"),
}
"""What a recipe reads; of a text grpo takes what is to be learnt as the answer. A recipe that is not here looks at its
rows itself."""

MAX_MESSAGES = 4096
MAX_TOP_K = 128
"""Teacher tokens per position; more would cost the memory of a second vocabulary."""

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})

NOT_RENDERED = ("tools", "functions", "function_call", "tool_calls", "audio", "refusal")
"""Fields that change what a model would be shown, and that we would leave out in silence."""

_KEYS: dict[Form, tuple[str, ...]] = {
    "preference": ("chosen", "rejected"),
    "tokens": ("completion_tokens", "weights", "teacher_tokens", "teacher_logprobs"),
}


def form_of(row: JsonRow) -> Form:
    """The form that a row's keys show; text when it has none of the others'."""
    for form, keys in _KEYS.items():
        if any(key in row for key in keys):
            return form
    # What already has a completion may carry an answer as one more thing that a reward reads.
    return "prompt" if "answer" in row and "completion" not in row and "messages" not in row else "text"


def check_form(rows: Sequence[JsonRow], recipe: str, field: str = "dataset") -> None:
    """Whether the rows are what a recipe reads. They are checked by themselves already.

    Raises: BadDataset naming the row, from 1.
    """
    wanted = FORM_OF_RECIPE.get(recipe)
    for number, row in enumerate(rows, start=1):
        if wanted is not None and form_of(row) not in wanted:
            raise BadDataset(
                f"row {number} is a row of {form_of(row)}; recipe {recipe} reads rows of {' or '.join(wanted)}",
                field=field,
            )
        if recipe in ("distillation", "weights"):
            key = "teacher_tokens" if recipe == "distillation" else "weights"
            if key not in row:
                raise BadDataset(f"row {number} has no {key}, which recipe {recipe} reads", field=field)
            if recipe == "weights" and "teacher_tokens" in row:
                raise BadDataset(f"row {number} has teacher_tokens; recipe weights does not read them", field=field)


def check_preference(row: JsonRow, where: str, field: str) -> None:
    """{prompt, chosen, rejected}, all texts or all lists of chat messages.

    Raises: BadDataset naming the row and its field.
    """
    for name in ("prompt", "chosen", "rejected"):
        if name not in row:
            raise BadDataset(f"{where} has no {name}", field=field)
    if isinstance(row["prompt"], str):
        for name in ("chosen", "rejected"):
            if not isinstance(row[name], str) or not row[name]:
                raise BadDataset(f"{where}: {name} is not a text with anything in it", field=field)
    else:
        check_messages(row["prompt"], f"{where}: prompt", field)
        for name in ("chosen", "rejected"):
            check_messages(row[name], f"{where}: {name}", field, roles=frozenset({"assistant"}))
    if row["chosen"] == row["rejected"]:
        raise BadDataset(f"{where} prefers an answer to itself: chosen and rejected are equal", field=field)


def check_prompt(row: JsonRow, where: str, field: str) -> None:
    """{prompt, answer}, both texts. The answer may be empty: not every reward reads it.

    Raises: BadDataset naming the row and its field.
    """
    for name in ("prompt", "answer"):
        if name not in row:
            raise BadDataset(f"{where} has no {name}", field=field)
        if not isinstance(row[name], str):
            raise BadDataset(f"{where}: {name} is not a text", field=field)


def check_tokens(row: JsonRow, where: str, field: str) -> None:
    """{prompt or prompt_tokens, completion_tokens} with weights, or teacher_tokens and teacher_logprobs, or both.

    weights has one finite number per completion token; teacher_tokens and teacher_logprobs one list of 1 to 128 entries
    per completion token, logprobs in nats and at most 0.
    Raises: BadDataset naming the row and its field.
    """
    if ("prompt" in row) == ("prompt_tokens" in row):
        raise BadDataset(f"{where} needs exactly one of prompt and prompt_tokens", field=field)
    if "prompt_tokens" in row:
        _token_ids(row["prompt_tokens"], f"{where}: prompt_tokens", field)
    elif not isinstance(row["prompt"], str):
        check_messages(row["prompt"], f"{where}: prompt", field)
    count = len(_token_ids(row.get("completion_tokens"), f"{where}: completion_tokens", field))
    if not count:
        raise BadDataset(f"{where} has no completion_tokens", field=field)
    if "weights" in row:
        weights = _list_of(row["weights"], count, f"{where}: weights", field)
        numbers = [_number(value, f"{where}: weights[{i}]", field) for i, value in enumerate(weights)]
        if not any(numbers):
            raise BadDataset(f"{where}: every weight is 0, so there is nothing to learn", field=field)
    if ("teacher_tokens" in row) != ("teacher_logprobs" in row):
        raise BadDataset(f"{where} needs both teacher_tokens and teacher_logprobs, or neither", field=field)
    if "teacher_tokens" in row:
        _check_teacher(row, count, where, field)
    elif "weights" not in row:
        raise BadDataset(f"{where} has neither weights nor teacher_tokens", field=field)


def check_messages(value: JsonValue, where: str, field: str, roles: frozenset[str] = ROLES) -> None:
    """A list of at least one chat message with one of the roles and a text as content.

    Raises: BadDataset naming the message and its field.
    """
    if not isinstance(value, list) or not value:
        raise BadDataset(f"{where} is not a list with at least one message", field=field)
    if len(value) > MAX_MESSAGES:
        raise BadDataset(f"{where} has {len(value)} messages; the limit is {MAX_MESSAGES}", field=field)
    for number, message in enumerate(value):
        place = f"{where}[{number}]"
        if not isinstance(message, dict):
            raise BadDataset(f"{place} is not an object", field=field)
        role = message.get("role")
        if not isinstance(role, str) or role not in roles:
            raise BadDataset(f"{place}.role is {_shown(role)}, none of {', '.join(sorted(roles))}", field=field)
        if not isinstance(message.get("content"), str):
            raise BadDataset(f"{place}.content is not a text", field=field)
        for name in NOT_RENDERED:
            if message.get(name):
                raise BadDataset(f"{place}.{name} is not supported", field=field)


def _check_teacher(row: JsonRow, count: int, where: str, field: str) -> None:
    tokens = _list_of(row["teacher_tokens"], count, f"{where}: teacher_tokens", field)
    logprobs = _list_of(row["teacher_logprobs"], count, f"{where}: teacher_logprobs", field)
    for i in range(count):
        ids = _token_ids(tokens[i], f"{where}: teacher_tokens[{i}]", field)
        if not 1 <= len(ids) <= MAX_TOP_K or len(set(ids)) < len(ids):
            raise BadDataset(
                f"{where}: teacher_tokens[{i}] does not hold 1 to {MAX_TOP_K} different tokens", field=field
            )
        place = f"{where}: teacher_logprobs[{i}]"
        for value in _list_of(logprobs[i], len(ids), place, field):
            if _number(value, place, field) > 1e-3:
                raise BadDataset(f"{place} holds {_shown(value)}, which is no log-probability", field=field)


def _list_of(value: JsonValue, count: int, place: str, field: str) -> list[JsonValue]:
    if not isinstance(value, list) or len(value) != count:
        raise BadDataset(f"{place} is not a list of {count} entries", field=field)
    return value


def _number(value: JsonValue, place: str, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadDataset(f"{place} is {_shown(value)}, not a finite number", field=field)
    return float(value)


def _token_ids(value: JsonValue, place: str, field: str) -> list[int]:
    if not isinstance(value, list):
        raise BadDataset(f"{place} is not a list of token ids", field=field)
    ids: list[int] = []
    for entry in value:
        if isinstance(entry, bool) or not isinstance(entry, int) or not 0 <= entry < 2**31:
            raise BadDataset(f"{place} holds {_shown(entry)}, which is no token id", field=field)
        ids.append(entry)
    return ids


def _shown(value: JsonValue) -> str:
    return shown(value, 40) if isinstance(value, str) else json.dumps(value)[:40]
