"""Held-out rows to token ids, with the base's own tokenizer and chat template. Runs in the reference child.

Chat rows: everything before the last message, rendered by the chat template up to where the answer begins, is the
prompt; the last message's content is the completion. Prompt and completion are tokenised apart, so that a label has
the same tokens in every row.
"""

import hashlib
from collections.abc import Sequence

from pydantic import JsonValue
from transformers import PreTrainedTokenizerBase

from openmint.errors import BadDataset
from openmint_evaluator.reference_messages import EncodedRows

PLAIN = "plain"


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids, with the special tokens that the tokenizer puts before a text."""
    return [_ids(tokenizer, text, is_start=True) for text in texts]


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, JsonValue]], labels: Sequence[str], max_tokens: int
) -> EncodedRows:
    """Render and tokenise; rows longer than `max_tokens`, or without a prompt, are left out and counted.

    Raises: BadDataset naming the row that can't be read, or whose completion is none of the labels.
    """
    encoded: list[tuple[list[int], list[int], int | None]] = []
    renderings: set[str] = set()
    left_out = 0
    for number, row in enumerate(rows, start=1):
        prompt, completion, rendering, is_rendered = _split(tokenizer, row, number)
        renderings.add(rendering)
        label = None
        if labels:
            if completion not in labels:
                raise BadDataset(f"held-out row {number}: completion {completion[:80]!r} is none of the labels")
            label = labels.index(completion)
        prompt_ids = _ids(tokenizer, prompt, is_start=not is_rendered)
        completion_ids = _ids(tokenizer, completion, is_start=False)
        if not completion_ids:
            raise BadDataset(f"held-out row {number}: the completion is empty")
        if not prompt_ids or len(prompt_ids) + len(completion_ids) > max_tokens:
            left_out += 1
            continue
        encoded.append((prompt_ids, completion_ids, label))
    if not encoded:
        raise BadDataset(
            "no held-out row can be scored" + (f": {left_out} are too long or have no prompt" if left_out else "")
        )
    return EncodedRows(
        rows=encoded,
        labels=[_ids(tokenizer, label, is_start=False) for label in labels],
        rendering=" and ".join(sorted(renderings)),
        left_out=left_out,
    )


def _split(tokenizer: PreTrainedTokenizerBase, row: dict[str, JsonValue], number: int) -> tuple[str, str, str, bool]:
    """Prompt, completion, how the prompt was rendered, and whether it carries its special tokens already."""
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt, completion, PLAIN, False
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadDataset(f"held-out row {number} has neither prompt and completion nor messages")
    last = messages[-1]
    answer = last.get("content") if isinstance(last, dict) and last.get("role") == "assistant" else None
    if not isinstance(answer, str):
        raise BadDataset(f"held-out row {number}: the last message is not an assistant's text")
    template = tokenizer.chat_template
    if not isinstance(template, str):
        raise BadDataset(f"held-out row {number} is a chat, and the base model has no chat template")
    digest = hashlib.sha256(template.encode()).hexdigest()
    if len(messages) == 1:
        return "", answer, f"chat template sha256:{digest}", True
    rendered = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)  # pyright: ignore[reportArgumentType]
    return str(rendered), answer, f"chat template sha256:{digest}", True


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, is_start: bool) -> list[int]:
    return [int(token) for token in tokenizer(text, add_special_tokens=is_start)["input_ids"]]  # pyright: ignore[reportArgumentType]
