"""Rows as people have them, OpenAI chat or prompt/completion, turned into tokens and what of them is learnt."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeGuard

from pydantic import JsonValue

from openmint.errors import BadDataset
from openmint.row_forms import JsonRow
from openmint_trainer.rows import Row, make_row


class Tokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a text."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The base's own template, if it has one."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""
        ...

    def apply_chat_template(
        self, conversation: Sequence[Mapping[str, JsonValue]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """The text that the base model is prompted with."""
        ...


def tokenise_rows(rows: Sequence[JsonRow], tokenizer: Tokenizer, max_tokens: int) -> list[Row]:
    """Tokenise a dataset.

    A chat row is rendered by the base's own chat template and learns the assistant messages that end it; a
    prompt/completion row learns its completion and then to stop.
    Raises: BadDataset naming the row (from 1) that can't be trained on.
    """
    if not rows:
        raise BadDataset("the dataset has no rows", field="dataset")
    return [_tokenise(row, number, tokenizer, max_tokens) for number, row in enumerate(rows, start=1)]


def tokenise_pairs(rows: Sequence[JsonRow], tokenizer: Tokenizer, max_tokens: int) -> list[Row]:
    """Tokenise preferences, {prompt, chosen, rejected}, texts or lists of chat messages: two rows of each, the chosen
    answer first, rendered as `tokenise_rows` renders them.

    Raises: BadDataset naming the row (from 1) that can't be trained on.
    """
    if not rows:
        raise BadDataset("the dataset has no rows", field="dataset")
    made: list[Row] = []
    for number, row in enumerate(rows, start=1):
        for name in ("chosen", "rejected"):
            made.append(_tokenise(_answered(row, name), number, tokenizer, max_tokens))
    return made


def _answered(row: JsonRow, name: str) -> JsonRow:
    prompt, answer = row.get("prompt"), row.get(name)
    if isinstance(prompt, list) and isinstance(answer, list):
        return {"messages": [*prompt, *answer]}
    return {"prompt": prompt, "completion": answer}


def render_prompt(messages: Sequence[Mapping[str, JsonValue]], number: int, tokenizer: Tokenizer) -> list[int]:
    """The tokens that a chat asks with, up to where the assistant begins. Raises: BadDataset naming the row."""
    if tokenizer.chat_template is None:
        raise BadDataset(f"row {number} is a chat and this base has no chat template", field="dataset")
    try:
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # A chat template is a program of the base's maker and raises what it likes.
        raise BadDataset(f"row {number}: the chat template refuses it: {error}", field="dataset") from error
    return tokenizer.encode(prompt, add_special_tokens=False)


def check_length(length: int, number: int, max_tokens: int) -> None:
    """Raises: BadDataset naming a row (from 1) of more tokens than the job allows."""
    if length > max_tokens:
        raise BadDataset(
            f"row {number} has {length} tokens, more than training.max_tokens_per_row = {max_tokens}", field="dataset"
        )


def _tokenise(row: JsonRow, number: int, tokenizer: Tokenizer, max_tokens: int) -> Row:
    if "messages" in row:
        prompt, learnt = _chat_tokens(row, number, tokenizer)
    else:
        prompt, learnt = _completion_tokens(row, number, tokenizer)
    check_length(len(prompt) + len(learnt), number, max_tokens)
    if not learnt:
        raise BadDataset(f"row {number} has nothing to learn", field="dataset")
    if not prompt:
        # The first token can't be predicted from anything, so it serves as the prompt.
        prompt, learnt = learnt[:1], learnt[1:]
        if not learnt:
            raise BadDataset(f"row {number} has a single token: there is nothing to predict", field="dataset")
    return make_row([*prompt, *learnt], [False] * len(prompt) + [True] * len(learnt))


def _completion_tokens(row: JsonRow, number: int, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    prompt, completion = row.get("prompt"), row.get("completion")
    if not isinstance(prompt, str) or not isinstance(completion, str):
        raise BadDataset(f"row {number} has neither messages nor a prompt and a completion", field="dataset")
    if not completion:
        raise BadDataset(f"row {number} has an empty completion", field="dataset")
    # The prompt is tokenised by itself because a served request is: the model never sees a joint tokenisation.
    learnt = tokenizer.encode(completion, add_special_tokens=False)
    if tokenizer.eos_token_id is not None and learnt[-1:] != [tokenizer.eos_token_id]:
        learnt.append(tokenizer.eos_token_id)
    return tokenizer.encode(prompt, add_special_tokens=True), learnt


def _chat_tokens(row: JsonRow, number: int, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    messages = row["messages"]
    if not _is_chat(messages):
        raise BadDataset(f"row {number}: messages is not a list of objects with role and content", field="dataset")
    if tokenizer.chat_template is None:
        raise BadDataset(f"row {number} is a chat and this base has no chat template", field="dataset")
    asked = list(messages)
    while asked and asked[-1].get("role") == "assistant":
        asked.pop()
    if len(asked) == len(messages):
        raise BadDataset(f"row {number} does not end with an assistant message", field="dataset")
    try:
        whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) if asked else ""
    except Exception as error:  # A chat template is a program of the base's maker and raises what it likes.
        raise BadDataset(f"row {number}: the chat template refuses it: {error}", field="dataset") from error
    if not whole.startswith(prompt):
        raise BadDataset(
            f"row {number}: the chat template renders the prompt differently with its answer", field="dataset"
        )
    return (
        tokenizer.encode(prompt, add_special_tokens=False) if prompt else [],
        tokenizer.encode(whole[len(prompt) :], add_special_tokens=False),
    )


def _is_chat(messages: JsonValue) -> TypeGuard[list[dict[str, JsonValue]]]:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m for m in messages)
    )
