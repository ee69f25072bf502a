"""The forms of a row beside text, and every way in which one can be wrong."""

import json
from typing import Any

import pytest
from pydantic import JsonValue

from openmint.datasets import canonical_dataset, rows_from_bytes
from openmint.errors import BadDataset
from openmint.row_forms import MAX_TOP_K, check_form, form_of

MESSAGE: dict[str, JsonValue] = {"role": "user", "content": "hi"}
PREFERENCE: dict[str, JsonValue] = {"prompt": "2+2=", "chosen": "4", "rejected": "5"}
CHAT: dict[str, JsonValue] = {
    "prompt": [MESSAGE],
    "chosen": [{"role": "assistant", "content": "yes"}],
    "rejected": [{"role": "assistant", "content": "no"}],
}
PROMPT: dict[str, JsonValue] = {"prompt": "2+2=", "answer": "4"}
WEIGHTED: dict[str, JsonValue] = {"prompt": "a", "completion_tokens": [3, 4], "weights": [0.5, -1]}
TEACHER: dict[str, JsonValue] = {
    "prompt_tokens": [1, 2],
    "completion_tokens": [3, 4],
    "teacher_tokens": [[3, 5], [4]],
    "teacher_logprobs": [[-0.1, -3], [0.0]],
}


@pytest.mark.parametrize(
    ("row", "form"),
    [
        (PREFERENCE, "preference"),
        (CHAT, "preference"),
        (WEIGHTED, "tokens"),
        (TEACHER, "tokens"),
        (TEACHER | {"weights": [1, 0]}, "tokens"),
        ({"prompt": "a", "completion": "b"}, "text"),
    ],
)
def test_a_good_row_shows_its_form(row: dict[str, JsonValue], form: str) -> None:
    assert form_of(row) == form
    assert canonical_dataset([row]).rows == 1


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no rejected": ({"prompt": "a", "chosen": "b"}, "row 1 has no rejected"),
    "no prompt": ({"chosen": "b", "rejected": "c"}, "row 1 has no prompt"),
    "equal answers": (PREFERENCE | {"rejected": "4"}, "prefers an answer to itself"),
    "empty answer": (PREFERENCE | {"chosen": ""}, "chosen is not a text with anything in it"),
    "answer of another kind": (CHAT | {"chosen": "yes"}, "chosen is not a list with at least one message"),
    "user answers": (CHAT | {"chosen": [MESSAGE]}, r"chosen\[0\].role is 'user', none of assistant"),
    "prompt of messages with an unknown role": (
        CHAT | {"prompt": [{"role": "bot", "content": "x"}]},
        r"prompt\[0\].role is 'bot'",
    ),
    "tools in a message": (CHAT | {"prompt": [MESSAGE | {"tools": [1]}]}, r"prompt\[0\].tools is not supported"),
    "two prompts": (TEACHER | {"prompt": "a"}, "exactly one of prompt and prompt_tokens"),
    "no completion tokens": (WEIGHTED | {"completion_tokens": []}, "has no completion_tokens"),
    "completion tokens missing": ({"prompt": "a", "weights": [1]}, "completion_tokens is not a list of token ids"),
    "answer without a prompt": ({"answer": "4"}, "row 1 has no prompt"),
    "answer is a number": ({"prompt": "2+2=", "answer": 4}, "answer is not a text"),
    "token is a text": (WEIGHTED | {"completion_tokens": [3, "4"]}, "completion_tokens holds '4', which is no token"),
    "token below zero": (WEIGHTED | {"completion_tokens": [3, -1]}, "holds -1, which is no token id"),
    "token is true": (WEIGHTED | {"completion_tokens": [3, True]}, "holds true, which is no token id"),
    "token beyond all": (WEIGHTED | {"completion_tokens": [3, 2**31]}, "which is no token id"),
    "too few weights": (WEIGHTED | {"weights": [1]}, "weights is not a list of 2 entries"),
    "weight is a text": (WEIGHTED | {"weights": [1, "2"]}, r"weights\[1\] is '2', not a finite number"),
    "weight is infinite": (WEIGHTED | {"weights": [1, float("inf")]}, "not a finite number"),
    "weights all zero": (WEIGHTED | {"weights": [0, 0.0]}, "every weight is 0"),
    "neither weights nor teacher": ({"prompt": "a", "completion_tokens": [1]}, "neither weights nor teacher_tokens"),
    "teacher without logprobs": (WEIGHTED | {"teacher_tokens": [[1], [1]]}, "needs both teacher_tokens and"),
    "teacher too short": (TEACHER | {"teacher_tokens": [[3, 5]]}, "teacher_tokens is not a list of 2 entries"),
    "teacher with nothing": (TEACHER | {"teacher_tokens": [[], [4]]}, r"teacher_tokens\[0\] does not hold 1 to 128"),
    "teacher with one twice": (TEACHER | {"teacher_tokens": [[3, 3], [4]]}, "different tokens"),
    "teacher with too many": (
        TEACHER | {"teacher_tokens": [list(range(MAX_TOP_K + 1)), [4]]},
        r"teacher_tokens\[0\] does not hold 1 to 128",
    ),
    "logprobs do not match": (TEACHER | {"teacher_logprobs": [[-1], [0]]}, r"teacher_logprobs\[0\] is not a list of 2"),
    "logprob above zero": (TEACHER | {"teacher_logprobs": [[0.5, -1], [0]]}, "holds 0.5, which is no log-probability"),
    "logprob is null": (TEACHER | {"teacher_logprobs": [[None, -1], [0]]}, "is null, not a finite number"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_wrong_row_is_named_with_its_field(name: str) -> None:
    row, message = BAD[name]
    with pytest.raises(BadDataset, match=message):
        canonical_dataset([row])


@pytest.mark.parametrize("row", [PREFERENCE, PROMPT, WEIGHTED])
def test_what_is_scored_must_be_text(row: dict[str, JsonValue]) -> None:
    with pytest.raises(BadDataset, match=r"line 1 is a row of .*; rows of text are read here"):
        rows_from_bytes(json.dumps(row).encode())


def test_grpo_reads_prompts_with_answers_and_texts_and_nobody_else_reads_prompts() -> None:
    text = {"prompt": "2+2=", "completion": "4", "answer": "four"}
    canonical_dataset([PROMPT, text, PROMPT | {"answer": ""}])
    assert [form_of(row) for row in (PROMPT, text)] == ["prompt", "text"]
    check_form([PROMPT, text], "grpo")
    for recipe, row, message in (
        ("sft", PROMPT, "row of prompt; recipe sft reads rows of text"),
        ("dpo", PROMPT, "row of prompt; recipe dpo reads rows of preference"),
        ("grpo", PREFERENCE, "row of preference; recipe grpo reads rows of prompt or text"),
    ):
        with pytest.raises(BadDataset, match=message):
            check_form([row], recipe)


def test_a_recipe_that_is_not_listed_looks_at_its_rows_itself() -> None:
    check_form([PREFERENCE, WEIGHTED], "another")
