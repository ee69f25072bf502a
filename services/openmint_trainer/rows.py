"""Tokenised rows, and the portions in which they go through the base."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One sequence: position i reads tokens[i] and predicts targets[i], which is already shifted.

    Shapes: all [L]; tokens and targets int64, weights float32, 0 where nothing is trained.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    sampler_logprobs: torch.Tensor | None = None
    """Of targets[i], as the revision that sampled it gave it, nats."""
    advantages: torch.Tensor | None = None
    reference_logprobs: torch.Tensor | None = None
    """Of targets[i] under the base without adapter, nats."""

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def trained_tokens(self) -> int:
        """Positions whose weight is not zero."""
        return int(torch.count_nonzero(self.weights))

    def scaled(self, factor: float) -> "Row":
        """The same row with every weight multiplied."""
        return replace(self, weights=self.weights * factor)


def make_row(token_ids: Sequence[int], is_trained: Sequence[bool]) -> Row:
    """A row from a whole sequence of L+1 tokens and which of them are to be learnt.

    What follows the last learnt token can't change anything and is left out.
    """
    last = max((i for i, trained in enumerate(is_trained) if trained), default=0)
    tokens = torch.tensor(token_ids[:last], dtype=torch.int64)
    targets = torch.tensor(token_ids[1 : last + 1], dtype=torch.int64)
    weights = torch.tensor(is_trained[1 : last + 1], dtype=torch.float32)
    return Row(tokens, targets, weights)


@dataclass(frozen=True, slots=True, eq=False)
class Portion:
    """Whole rows of one policy that pass through the base together.

    A batch is cut into portions by its own rows alone, so a policy's sums come in the same order in any company.
    """

    rows: tuple[Row, ...]

    @property
    def tokens(self) -> int:
        """Positions that the base computes."""
        return sum(len(row) for row in self.rows)


def split_batch(rows: Iterable[Row], portion_tokens: int) -> list[Portion]:
    """Cut a batch, in its order, into portions of at most `portion_tokens`; a longer row is a portion by itself."""
    portions: list[Portion] = []
    held: list[Row] = []
    held_tokens = 0
    for row in rows:
        if held and held_tokens + len(row) > portion_tokens:
            portions.append(Portion(tuple(held)))
            held, held_tokens = [], 0
        held.append(row)
        held_tokens += len(row)
    if held:
        portions.append(Portion(tuple(held)))
    return portions
