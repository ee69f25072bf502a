"""Datasets as people have them, and every way in which a row can be wrong."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmint import datasets
from openmint.datasets import Message, Row, canonical_dataset, canonical_jsonl, read_json_lines, rows_from_bytes
from openmint.errors import BadDataset

CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
PAIR = {"prompt": "2+2=", "completion": "4"}


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_both_forms_are_read_side_by_side():
    assert rows_from_bytes(lines(CHAT, PAIR)) == [
        Row(completion="hello", prompt_messages=(Message("user", "hi"),)),
        Row(completion="4", prompt="2+2="),
    ]


def test_a_file_from_windows_with_blank_lines_is_read():
    data = b"\xef\xbb\xbf" + lines(PAIR).replace(b"\n", b"\r\n") + b"\r\n\n" + lines(PAIR)
    assert len(rows_from_bytes(data)) == 2


def test_separators_inside_a_text_do_not_split_a_row():
    row = {"prompt": "a\u2028b\x85c", "completion": "d"}
    assert rows_from_bytes(json.dumps(row, ensure_ascii=False).encode())[0].prompt == "a\u2028b\x85c"


def message(role="assistant", content="x", **more):
    return {"role": role, "content": content} | more


BAD = {
    "not JSON": (b"{", "line 2", "not JSON"),
    "not an object": (b"[1]", "line 2", "object"),
    "NaN": (b'{"prompt": NaN, "completion": "x"}', "line 2", "NaN"),
    "a key twice": (b'{"prompt": "a", "prompt": "b", "completion": "x"}', "line 2", "twice"),
    "not UTF-8": (b'{"prompt": "\xff", "completion": "x"}', "line 2", "UTF-8"),
    "deep": (b'{"a":' + b"[" * 50_000, "line 2", "nested"),
    "neither form": (lines({"text": "x"}), "line 2", "neither messages nor prompt"),
    "no completion": (lines({"prompt": "x"}), "line 2", "completion"),
    "prompt is a number": (lines({"prompt": 1, "completion": "x"}), "line 2", "prompt is not a text"),
    "empty completion": (lines({"prompt": "x", "completion": ""}), "line 2", "empty completion"),
    "both forms": (lines(CHAT | PAIR), "line 2", "both messages and prompt"),
    "messages empty": (lines({"messages": []}), "line 2", "messages"),
    "messages no list": (lines({"messages": "x"}), "line 2", "messages"),
    "message no object": (lines({"messages": ["x"]}), "line 2", "messages[0]"),
    "unknown role": (lines({"messages": [message("bot\x1b[31m")]}), "line 2", "messages[0].role is 'bot\\x1b[31m'"),
    "role is a list": (lines({"messages": [message(["user"])]}), "line 2", "messages[0].role"),
    "no content": (lines({"messages": [{"role": "assistant"}]}), "line 2", "messages[0].content"),
    "content of parts": (lines({"messages": [message(content=[{"type": "text"}])]}), "line 2", "messages[0].content"),
    "ends with the user": (lines({"messages": [message(), message("user")]}), "line 2", "assistant"),
    "nothing to learn": (lines({"messages": [message(content="")]}), "line 2", "nothing to learn"),
    "tools": (lines(CHAT | {"tools": [{}]}), "line 2", "tools"),
    "tool calls": (lines({"messages": [message(tool_calls=[{}])]}), "line 2", "messages[0].tool_calls"),
}


@pytest.mark.parametrize(("data", "line", "words"), BAD.values(), ids=BAD)
def test_a_bad_row_is_refused_by_line_and_field(data, line, words):
    with pytest.raises(BadDataset) as caught:
        rows_from_bytes(lines(PAIR) + data, field="dataset.rows")
    assert line in caught.value.detail and words in caught.value.detail and caught.value.detail.isprintable()
    assert caught.value.field == "dataset.rows"


@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_an_empty_dataset_is_refused(data):
    with pytest.raises(BadDataset, match="no rows"):
        rows_from_bytes(data)
    with pytest.raises(BadDataset, match="no rows"):
        canonical_jsonl([])


def test_limits_hold(monkeypatch):
    monkeypatch.setattr(datasets, "MAX_ROWS", 2)
    with pytest.raises(BadDataset, match="more than 2 rows"):
        rows_from_bytes(lines(PAIR, PAIR, PAIR))
    with pytest.raises(BadDataset, match="3 rows; the limit is 2"):
        canonical_jsonl([PAIR] * 3)
    monkeypatch.setattr(datasets, "MAX_LINE_BYTES", 20)
    with pytest.raises(BadDataset, match="line 1 has 37 bytes"):
        rows_from_bytes(lines(PAIR))
    monkeypatch.setattr(datasets, "MAX_BYTES", 30)
    with pytest.raises(BadDataset, match="bytes"):
        rows_from_bytes(lines(PAIR))
    with pytest.raises(BadDataset, match="larger than 30 bytes at row 1"):
        canonical_jsonl([PAIR])


def test_a_lone_surrogate_can_not_be_written():
    with pytest.raises(BadDataset, match="row 1"):
        canonical_dataset([{"prompt": "\ud800", "completion": "x"}])


def test_canonical_bytes_do_not_depend_on_the_order_of_keys():
    turned = {"completion": "4", "prompt": "2+2="}
    assert canonical_dataset([PAIR]) == canonical_dataset([turned])
    assert canonical_jsonl([PAIR]) == b'{"completion":"4","prompt":"2+2="}\n'


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.lists(st.fixed_dictionaries({"prompt": texts, "completion": texts.filter(bool)}), min_size=1, max_size=5))
def test_canonical_bytes_are_read_back_as_the_same_rows(rows):
    data = canonical_jsonl(rows)
    assert read_json_lines(data) == rows and canonical_jsonl(read_json_lines(data)) == data
    assert [row.completion for row in rows_from_bytes(data)] == [row["completion"] for row in rows]


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_refusal(data):
    try:
        rows_from_bytes(data)
    except BadDataset as error:
        assert error.detail.isprintable()
