"""What every loss takes and gives. Losses are pure functions over the used positions of one policy's rows.

Shape legend: N used positions of all rows end to end, K targets per position, S rows.
"""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, slots=True)
class LossInputs:
    """The used positions of some rows of one policy, end to end.

    Shapes: all [N], float32; with several targets per position logprobs and weights are [N, K]. N counts positions
    whose weight is not zero or whose sequence mask is set. Where a weight is zero the other tensors may hold anything,
    infinities too: losses never multiply such a value by zero.
    Raises: ValueError when the rows do not add up to N.
    """

    logprobs: torch.Tensor
    """Of the target token at each position under the current weights, nats, with gradient."""
    weights: torch.Tensor
    sampler_logprobs: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    reference_logprobs: torch.Tensor | None = None
    sequence_mask: torch.Tensor | None = None
    rows: tuple[int, ...] = ()
    """How many of the N positions are of each row, in order; zeros count. Empty: all are of one row."""

    def __post_init__(self) -> None:
        if self.rows and sum(self.rows) != self.logprobs.shape[0]:
            raise ValueError(f"rows of {sum(self.rows)} positions for {self.logprobs.shape[0]} log-probabilities")

    def of(self, name: str) -> torch.Tensor:
        """An optional tensor that the loss has declared to need. Raises: ValueError when it is absent."""
        values: torch.Tensor | None = getattr(self, name)
        if values is None:
            raise ValueError(f"the loss reads {name} and did not declare it")
        return values

    @property
    def is_active(self) -> torch.Tensor:
        """bool [N]: the weight is not zero."""
        return self.weights != 0

    @property
    def in_sequence(self) -> torch.Tensor:
        """bool [N]: the position counts towards its row's own ratio or log-probability."""
        return self.is_active if self.sequence_mask is None else self.sequence_mask != 0

    def by_row(self, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A tensor [N] as S tensors, one per row."""
        return values.split(list(self.rows or (values.shape[0],)))

    def sum_by_row(self, values: torch.Tensor) -> torch.Tensor:
        """The sums of a tensor [N] over each row, [S]."""
        return torch.stack([part.sum() for part in self.by_row(values)])

    def at_positions(self, per_row: torch.Tensor) -> torch.Tensor:
        """One value per row [S], repeated at the row's positions [N]."""
        lengths = torch.tensor(self.rows or (self.logprobs.shape[0],), device=per_row.device)
        return per_row.repeat_interleave(lengths)


@dataclass(frozen=True, slots=True)
class LossOutputs:
    """`loss` is a scalar, summed over positions and never averaged, so that micro-batches add up exactly.

    `metrics` are sums and counts for the same reason: whoever shows a share or a mean divides two of them.
    """

    loss: torch.Tensor
    metrics: dict[str, float] = field(default_factory=dict)
