from collections.abc import Sequence

import pytest

from openmint_evaluator.comparison import RowScore
from openmint_evaluator.encoded_rows import EncodedRow
from openmint_evaluator.scorers import LABEL, LOSS, SCORERS


class TableModel:
    """Answers from a table of next-token logprobs, whatever came before; counts what it was asked."""

    def __init__(self, logprobs: dict[int, float]) -> None:
        self.logprobs = logprobs
        self.constrained = 0
        self.scored = 0

    async def prompt_logprobs(self, token_ids: Sequence[int]) -> list[float]:
        self.scored += 1
        return [self.logprobs.get(token, -9.0) for token in token_ids[1:]]

    async def choose_token(self, prompt_ids: Sequence[int], allowed: Sequence[int]) -> int:
        self.constrained += 1
        return max(allowed, key=lambda token: self.logprobs.get(token, -9.0))


def test_registry_names_each_scorer() -> None:
    assert {name: scorer.name for name, scorer in SCORERS.items()} == {"label": "label", "loss": "loss"}
    assert LABEL.higher_is_better and not LOSS.higher_is_better


@pytest.mark.parametrize(("label", "value"), [(0, 1.0), (1, 0.0)])
async def test_label_takes_one_constrained_request_per_row(label: int, value: float) -> None:
    model = TableModel({7: -0.1, 8: -2.0})
    assert await LABEL.score_row(EncodedRow((1, 2), (7,), label), [(7,), (8,)], model) == RowScore(value)
    assert (model.constrained, model.scored) == (1, 0)


async def test_labels_with_equal_first_tokens_are_scored_whole() -> None:
    model = TableModel({7: -0.1, 8: -2.0, 9: -0.5})
    assert await LABEL.score_row(EncodedRow((1, 2), (7, 9), 1), [(7, 8), (7, 9)], model) == RowScore(1.0)
    assert (model.constrained, model.scored) == (0, 2)


async def test_loss_counts_completion_tokens_alone() -> None:
    model = TableModel({2: -5.0, 7: -0.5, 8: -1.5})
    assert await LOSS.score_row(EncodedRow((1, 2), (7, 8)), [], model) == RowScore(2.0, 2.0)
