"""Weighted cross entropy."""

from collections.abc import Mapping
from types import MappingProxyType

from openmint_trainer.losses.inputs import LossInputs, LossOutputs


def cross_entropy(inputs: LossInputs, config: Mapping[str, float] = MappingProxyType({})) -> LossOutputs:
    """Weighted negative log likelihood of the target tokens.

    loss = -sum over positions of w * p, with p = logprobs. Weights may be negative: a caller's own loss arrives as
    weights -dL/dp.

    Shapes: logprobs and weights are [N]; loss is a scalar.
    Source: the `cross_entropy` loss of the Tinker API documentation (sum reduction, `loss:sum`).
    """
    del config
    return LossOutputs(loss=-(inputs.weights * inputs.logprobs).sum())
