"""Datasets as people have them."""

from collections.abc import Mapping, Sequence

import pytest
from pydantic import JsonValue

from openmint.errors import BadDataset
from openmint_trainer.data import tokenise_rows

EOS = 0


class CharacterTokenizer:
    """One token per character; a chat template as small as one can be."""

    eos_token = "\0"
    eos_token_id = EOS
    chat_template: str | None = "<role>content;"

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return ([1] if add_special_tokens else []) + [ord(c) for c in text]

    def apply_chat_template(
        self, conversation: Sequence[Mapping[str, JsonValue]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        if any(m["content"] is None for m in conversation):
            raise TypeError("content is None")
        text = "".join(f"<{str(m['role'])[0]}>{m['content']};" for m in conversation)
        return text + ("<a>" if add_generation_prompt else "")


def learnt_text(row: dict[str, JsonValue]) -> str:
    (made,) = tokenise_rows([row], CharacterTokenizer(), 200)
    return "".join(chr(t) for t, w in zip(made.targets.tolist(), made.weights.tolist(), strict=True) if w)


def read_text(row: dict[str, JsonValue]) -> str:
    (made,) = tokenise_rows([row], CharacterTokenizer(), 200)
    return "".join(chr(t) for t in made.tokens.tolist())


def test_a_completion_is_learnt_with_its_end_and_the_prompt_is_not() -> None:
    row: dict[str, JsonValue] = {"prompt": "2+2=", "completion": " 4"}
    assert learnt_text(row) == " 4\0"
    assert read_text(row) == "\x012+2= 4"


def test_only_the_assistant_messages_that_end_a_chat_are_learnt() -> None:
    chat: list[JsonValue] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    assert learnt_text({"messages": chat}) == "d;"
    assert learnt_text({"messages": [*chat, {"role": "assistant", "content": "e"}]}) == "d;<a>e;"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a" * 300, "completion": "b"}, "row 2 has 303 tokens, more than training.max_tokens_per_row = 200"),
        ({"prompt": "a", "completion": ""}, "row 2 has an empty completion"),
        ({"prompt": "a"}, "row 2 has neither messages nor a prompt and a completion"),
        ({"text": "a"}, "row 2 has neither messages nor a prompt and a completion"),
        ({"messages": []}, "row 2: messages is not a list"),
        ({"messages": [{"role": "user", "content": "a"}]}, "row 2 does not end with an assistant message"),
        (
            {"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "a"}]},
            "row 2: the chat template refuses it: content is None",
        ),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_named(row: dict[str, JsonValue], message: str) -> None:
    good: dict[str, JsonValue] = {"prompt": "a", "completion": "b"}
    with pytest.raises(BadDataset, match=message):
        tokenise_rows([good, row], CharacterTokenizer(), 200)


def test_an_empty_dataset_is_refused() -> None:
    with pytest.raises(BadDataset, match="no rows"):
        tokenise_rows([], CharacterTokenizer(), 200)


def test_a_base_without_a_chat_template_refuses_chats_but_takes_completions() -> None:
    tokenizer = CharacterTokenizer()
    tokenizer.chat_template = None
    tokenise_rows([{"prompt": "", "completion": "bc"}], tokenizer, 200)
    with pytest.raises(BadDataset, match="no chat template"):
        tokenise_rows([{"messages": [{"role": "assistant", "content": "a"}]}], tokenizer, 200)
