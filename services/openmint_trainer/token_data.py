"""Rows whose completion comes as tokens, with a weight or a teacher's likeliest tokens at each of them.

Their form was checked by `openmint.row_forms.check_tokens`.
Shape legend: L positions of a row, K targets per position.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from pydantic import JsonValue

from openmint.errors import BadDataset
from openmint.row_forms import JsonRow
from openmint_trainer.data import Tokenizer, check_length, render_prompt
from openmint_trainer.losses import top_k_weights
from openmint_trainer.rows import Row, make_row

Numbers = list[float]


def weighted_rows(rows: Sequence[JsonRow], tokenizer: Tokenizer, max_tokens: int) -> list[Row]:
    """Rows with the weights that their maker gave each completion token; negative ones too.

    Raises: BadDataset naming the row (from 1) that can't be trained on.
    """

    def make(row: JsonRow, prompt: list[int], completion: list[int]) -> Row:
        return make_row([*prompt, *completion], [*[0.0] * len(prompt), *cast(Numbers, row["weights"])])

    return _each(rows, tokenizer, max_tokens, make)


def teacher_rows(rows: Sequence[JsonRow], tokenizer: Tokenizer, max_tokens: int) -> list[Row]:
    """Rows whose targets are a teacher's K likeliest tokens, weighted by its renormalised probabilities.

    K is that of the position with the most; others are filled up with weight 0. A row's own weights multiply its
    teacher's.
    Raises: BadDataset naming the row (from 1) that can't be trained on.
    """
    width = max((len(ids) for row in rows for ids in cast(list[list[int]], row["teacher_tokens"])), default=1)

    def make(row: JsonRow, prompt: list[int], completion: list[int]) -> Row:
        tokens, logprobs = cast(list[list[int]], row["teacher_tokens"]), cast(list[Numbers], row["teacher_logprobs"])
        shares_CK = top_k_weights(
            torch.tensor([[*values, *[-torch.inf] * (width - len(values))] for values in logprobs])
        )
        if "weights" in row:
            shares_CK *= torch.tensor(cast(Numbers, row["weights"]))[:, None]
        used = shares_CK.any(dim=1).nonzero()
        last = int(used[-1]) + 1 if len(used) else 0
        before = len(prompt) - 1
        ids = torch.tensor([*prompt, *completion], dtype=torch.int64)[: before + last]
        targets_CK = torch.tensor([[*t, *[0] * (width - len(t))] for t in tokens], dtype=torch.int64)
        empty = torch.zeros(before, width)
        return Row(
            ids, torch.cat([empty.to(torch.int64), targets_CK[:last]]), torch.cat([empty, shares_CK[:last].float()])
        )

    return _each(rows, tokenizer, max_tokens, make)


def _each(
    rows: Sequence[JsonRow],
    tokenizer: Tokenizer,
    max_tokens: int,
    make: Callable[[JsonRow, list[int], list[int]], Row],
) -> list[Row]:
    if not rows:
        raise BadDataset("the dataset has no rows", field="dataset")
    made: list[Row] = []
    for number, row in enumerate(rows, start=1):
        prompt, completion = _prompt_of(row, number, tokenizer), cast(list[int], row["completion_tokens"])
        check_length(len(prompt) + len(completion), number, max_tokens)
        if not prompt:
            raise BadDataset(f"row {number} has an empty prompt: nothing predicts its first token", field="dataset")
        made.append(make(row, prompt, completion))
        if not made[-1].trained_tokens:
            raise BadDataset(f"row {number} has nothing to learn", field="dataset")
    return made


def _prompt_of(row: JsonRow, number: int, tokenizer: Tokenizer) -> list[int]:
    if "prompt_tokens" in row:
        return cast(list[int], row["prompt_tokens"])
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return tokenizer.encode(prompt, add_special_tokens=True)
    return render_prompt(cast(list[dict[str, JsonValue]], prompt), number, tokenizer)
