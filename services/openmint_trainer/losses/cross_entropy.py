"""Weighted cross entropy, with one target per position or several."""

from collections.abc import Mapping

import torch

from openmint_trainer.losses.inputs import LossInputs, LossOutputs
from openmint_trainer.losses.loss import Loss


def cross_entropy(inputs: LossInputs, config: Mapping[str, float]) -> LossOutputs:
    """Weighted negative log likelihood of the target tokens.

    loss = -sum over positions (and their targets) of w * p, with p = logprobs. Weights may be negative: a caller's own
    loss arrives as weights -dL/dp. With weights that are a teacher's probabilities over its K likeliest tokens the loss
    is KL(teacher ‖ policy) plus the teacher's entropy, which has no gradient.

    Shapes: logprobs and weights are [N] or [N, K]; loss is a scalar.
    Metrics: none.
    Source: the `cross_entropy` loss of the Tinker API documentation (sum reduction, `loss:sum`).
    """
    del config
    return LossOutputs(loss=-torch.where(inputs.is_active, inputs.weights * inputs.logprobs, 0.0).sum())


CROSS_ENTROPY = Loss("cross_entropy", cross_entropy, takes_many_targets=True)
