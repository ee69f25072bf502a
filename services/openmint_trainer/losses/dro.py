"""Direct reward optimisation: policy gradient with a quadratic pull towards the sampler."""

from collections.abc import Mapping

import torch

from openmint_trainer.losses.inputs import LossInputs, LossOutputs
from openmint_trainer.losses.loss import KL_SETTING, Loss, Setting
from openmint_trainer.losses.ratios import SAMPLED, active_advantages, log_ratios, ratio_metrics


def dro(inputs: LossInputs, config: Mapping[str, float]) -> LossOutputs:
    """Policy gradient without a ratio, bounded by the squared distance to the sampler.

    loss = -sum over positions of w * (p * A - beta / 2 * (p - q)²), with p = logprobs and q = sampler_logprobs.

    Shapes: logprobs, sampler_logprobs (nats), advantages and weights are [N]; loss is a scalar.
    Settings: beta (0.05); kl_coef (0).
    Metrics: `ratio_metrics`, and squared_gap_sum: the sum of (p - q)².
    Source: Richemond et al. 2024, arXiv:2405.19107, whose value network the advantages replace; per token and summed,
        as the `dro` loss of the Tinker API documentation.
    """
    active = inputs.is_active
    gaps = log_ratios(inputs, active)
    logprobs = torch.where(active, inputs.logprobs, 0.0)
    objective = logprobs * active_advantages(inputs) - 0.5 * config["beta"] * gaps.square()
    metrics = ratio_metrics(inputs, gaps.detach().exp())
    metrics["squared_gap_sum"] = float(gaps.detach().square().sum())
    return LossOutputs(-(inputs.weights * objective).sum(), metrics)


DRO = Loss("dro", dro, {"beta": Setting(0.05, at_least=0.0), **KL_SETTING}, SAMPLED)
