"""Tokenised rows, and the portions in which they go through the base."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

TOKEN_VALUES = ("sampler_logprobs", "advantages", "reference_logprobs", "sequence_mask")
"""The optional tensors of a row, one value per position."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One sequence: position i reads tokens[i] and predicts targets[i], which is already shifted.

    Shapes: all [L]; tokens and targets int64, the others float32. For distillation from a teacher's K likeliest tokens
    targets and weights are [L, K]. Weights are 0 where nothing is trained.
    Raises: ValueError when a tensor does not have one value per position.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    sampler_logprobs: torch.Tensor | None = None
    """Of targets[i], as the revision that sampled it gave it, nats."""
    advantages: torch.Tensor | None = None
    reference_logprobs: torch.Tensor | None = None
    """Of targets[i] under the base without adapter, nats; 0 at positions that are not used."""
    sequence_mask: torch.Tensor | None = None
    """1 at positions that count towards the row's own ratio or log-probability; None: those that are trained."""

    def __post_init__(self) -> None:
        length = self.tokens.shape[0]
        if self.targets.shape != self.weights.shape or self.targets.shape[0] != length:
            raise ValueError(f"targets {self.targets.shape} and weights {self.weights.shape} of {length} tokens")
        for name in TOKEN_VALUES:
            values: torch.Tensor | None = getattr(self, name)
            if values is not None and values.shape != (length,):
                raise ValueError(f"{name} {tuple(values.shape)} of {length} tokens")

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def trained_tokens(self) -> int:
        """Positions whose weight is not zero."""
        return int(torch.count_nonzero(self._is_trained()))

    def used_positions(self) -> torch.Tensor:
        """Where a loss looks: bool [L], true where a weight is not zero or the sequence mask is set."""
        trained = self._is_trained()
        return trained if self.sequence_mask is None else trained | (self.sequence_mask != 0)

    def scaled(self, factor: float) -> "Row":
        """The same row with every weight multiplied."""
        return replace(self, weights=self.weights * factor)

    def _is_trained(self) -> torch.Tensor:
        nonzero = self.weights != 0
        return nonzero.any(dim=1) if nonzero.dim() == 2 else nonzero


def make_row(
    token_ids: Sequence[int],
    weights: Sequence[float],
    *,
    sampler_logprobs: Sequence[float] | None = None,
    advantages: Sequence[float] | None = None,
    reference_logprobs: Sequence[float] | None = None,
    sequence_mask: Sequence[float] | None = None,
) -> Row:
    """A row from a whole sequence of L+1 tokens and, of each token, how much it is learnt and what is known of it.

    All sequences have one entry per token; those of the first token can't be predicted and go unused. What follows the
    last token that is learnt or masked can't change anything and is left out.
    """
    used = [bool(weight) for weight in weights]
    if sequence_mask is not None:
        used = [u or bool(m) for u, m in zip(used, sequence_mask, strict=True)]
    last = max((i for i, is_used in enumerate(used) if is_used), default=0)

    def per_position(values: Sequence[float] | None) -> torch.Tensor | None:
        return None if values is None else torch.tensor(values[1 : last + 1], dtype=torch.float32)

    return Row(
        tokens=torch.tensor(token_ids[:last], dtype=torch.int64),
        targets=torch.tensor(token_ids[1 : last + 1], dtype=torch.int64),
        weights=torch.tensor(weights[1 : last + 1], dtype=torch.float32),
        sampler_logprobs=per_position(sampler_logprobs),
        advantages=per_position(advantages),
        reference_logprobs=per_position(reference_logprobs),
        sequence_mask=per_position(sequence_mask),
    )


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


def split_batch(rows: Iterable[Row], portion_tokens: int, unit_rows: int = 1) -> list[Portion]:
    """Cut a batch, in its order, into portions of at most `portion_tokens`.

    `unit_rows` neighbours belong together (2: the pairs of a preference) and are never parted; a unit that is longer
    than a portion is one by itself.
    """
    portions: list[Portion] = []
    held: list[Row] = []
    held_tokens = 0
    for unit in in_units(rows, unit_rows):
        unit_tokens = sum(len(row) for row in unit)
        if held and held_tokens + unit_tokens > portion_tokens:
            portions.append(Portion(tuple(held)))
            held, held_tokens = [], 0
        held.extend(unit)
        held_tokens += unit_tokens
    if held:
        portions.append(Portion(tuple(held)))
    return portions


def in_units(rows: Iterable[Row], unit_rows: int) -> list[tuple[Row, ...]]:
    """Neighbours that belong together, as tuples. Raises: ValueError when the last unit is incomplete."""
    flat = list(rows)
    return [tuple(unit) for unit in zip(*(flat[i::unit_rows] for i in range(unit_rows)), strict=True)]
