"""What every loss takes and gives. Losses are pure functions over the trained positions of one policy's rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True)
class LossInputs:
    """The trained positions of some rows of one policy, end to end.

    Shapes: all [N], float32; N counts positions whose weight is not zero.
    """

    logprobs: torch.Tensor
    """Of the target token at each position under the current weights, nats, with gradient."""
    weights: torch.Tensor
    sampler_logprobs: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    reference_logprobs: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class LossOutputs:
    """`loss` is a scalar, summed over positions and never averaged, so that micro-batches add up exactly."""

    loss: torch.Tensor
    metrics: dict[str, float] = field(default_factory=dict)


class Loss(Protocol):
    """A loss by name in `openmint_trainer.losses.LOSSES`."""

    def __call__(self, inputs: LossInputs, config: Mapping[str, float] = ..., /) -> LossOutputs: ...
