"""Weighted cross entropy."""

from openmint_trainer.losses.inputs import LossInputs, LossOutputs


def cross_entropy(inputs: LossInputs) -> LossOutputs:
    """Weighted negative log likelihood of the target tokens.

    loss = -sum over positions of w * p, with p = logprobs. Weights may be negative: a caller's own loss arrives as
    weights -dL/dp.

    Shapes: logprobs and weights are [N]; loss is a scalar.
    Source: the `cross_entropy` loss of the Tinker API documentation (sum reduction, `loss:sum`).
    """
    return LossOutputs(loss=-(inputs.weights * inputs.logprobs).sum())
