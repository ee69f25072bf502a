"""What episodes begin with: the dataset's prompts as tokens, and which of them a step takes.

A step's prompts follow from the job's seed and the step's number alone, so nothing of it need be kept to go on exactly.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import JsonValue

from openmint.errors import BadDataset
from openmint_trainer.data import JsonRow, Tokenizer
from openmint_trainer.rollouts.contract import derived_seed


class RolloutTokenizer(Tokenizer, Protocol):
    """A tokenizer that can also read back."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of tokens."""
        ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row's prompt as it is shown to the policy; `row` goes on to the reward with its answer filled in."""

    row: Mapping[str, JsonValue]
    text: str
    token_ids: tuple[int, ...]


def tokenise_prompts(
    rows: Sequence[JsonRow], tokenizer: RolloutTokenizer, max_new_tokens: int, max_tokens: int
) -> list[Prompt]:
    """The prompts of {prompt, answer}, {prompt, completion} and chat rows; what a row teaches is its answer.

    Raises: BadDataset naming the row (from 1) that has no prompt, or no room for `max_new_tokens` within `max_tokens`.
    """
    if not rows:
        raise BadDataset("the dataset has no rows", field="dataset")
    return [_prompt(row, number, tokenizer, max_new_tokens, max_tokens) for number, row in enumerate(rows, start=1)]


def choose_prompts(prompts: Sequence[Prompt], seed: int, number: int, count: int) -> list[Prompt]:
    """The prompts of step `number` (from 1): shuffled epochs, one after another."""
    chosen: list[Prompt] = []
    for position in range((number - 1) * count, number * count):
        epoch, index = divmod(position, len(prompts))
        order = list(range(len(prompts)))
        random.Random(derived_seed(seed, "epoch", epoch)).shuffle(order)
        chosen.append(prompts[order[index]])
    return chosen


def _prompt(row: JsonRow, number: int, tokenizer: RolloutTokenizer, max_new_tokens: int, max_tokens: int) -> Prompt:
    filled = dict(row)
    messages = row.get("messages")
    if isinstance(messages, list):
        asked = [dict(message) for message in messages if isinstance(message, dict)]
        if asked and asked[-1].get("role") == "assistant":
            filled.setdefault("answer", asked.pop().get("content", ""))
        if tokenizer.chat_template is None or not asked:
            raise BadDataset(
                f"row {number} is a chat, and this base has no template or the row no prompt", field="dataset"
            )
        try:
            text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # A chat template is a program of the base's maker and raises what it likes.
            raise BadDataset(f"row {number}: the chat template refuses it: {error}", field="dataset") from error
        token_ids = tokenizer.encode(text, add_special_tokens=False)
    else:
        prompt = row.get("prompt")
        if not isinstance(prompt, str):
            raise BadDataset(f"row {number} has no prompt", field="dataset")
        text, token_ids = prompt, tokenizer.encode(prompt, add_special_tokens=True)
    if not token_ids:
        raise BadDataset(f"row {number} has an empty prompt: there is nothing to go on from", field="dataset")
    if len(token_ids) + max_new_tokens > max_tokens:
        raise BadDataset(
            f"row {number} has {len(token_ids)} tokens, which with rollout.max_new_tokens = {max_new_tokens} are more "
            f"than {max_tokens}, the most that a row may have here",
            field="dataset",
        )
    return Prompt(filled, text, tuple(token_ids))
