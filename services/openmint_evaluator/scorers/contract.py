"""What a scorer is, and what it may ask of the model that it scores."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from openmint_evaluator.comparison import RowScore
from openmint_evaluator.encoded_rows import EncodedRow


class ScoredModel(Protocol):
    """A revision or a base as an engine serves it."""

    async def prompt_logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Logprobs in nats of every token but the first, given those before it; NaN where the engine has no number."""
        ...

    async def choose_token(self, prompt_ids: Sequence[int], allowed: Sequence[int]) -> int:
        """The likeliest next token among the allowed ones."""
        ...


ScoreRow = Callable[[EncodedRow, Sequence[tuple[int, ...]], ScoredModel], Awaitable[RowScore]]
"""(row, the labels' token ids, the model) -> the row's part of the score."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """One way to turn answers into a number per row."""

    name: str
    unit: str
    higher_is_better: bool
    score_row: ScoreRow
