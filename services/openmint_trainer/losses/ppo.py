"""Proximal policy optimisation."""

from collections.abc import Mapping

import torch

from openmint_trainer.losses.inputs import LossInputs, LossOutputs
from openmint_trainer.losses.loss import CLIP_HIGH, CLIP_LOW, KL_SETTING, Loss, clip_settings
from openmint_trainer.losses.ratios import SAMPLED, active_advantages, is_clipped, log_ratios, ratio_metrics


def ppo(inputs: LossInputs, config: Mapping[str, float]) -> LossOutputs:
    """Clipped policy gradient.

    loss = -sum over positions of w * min(r * A, clip(r, low, high) * A), with r = exp(logprobs - sampler_logprobs).
    A negative advantage with r above `high` is not clipped: its gradient still pushes the ratio down.

    Shapes: logprobs, sampler_logprobs (nats), advantages and weights are [N]; loss is a scalar.
    Settings: clip_low_threshold (0.8), clip_high_threshold (1.2), of r itself; kl_coef (0).
    Metrics: `ratio_metrics` with clipped_tokens.
    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7, summed and not averaged, as the `ppo` loss of the Tinker API
        documentation, whose thresholds these are.
    """
    low, high = config[CLIP_LOW], config[CLIP_HIGH]
    ratios = log_ratios(inputs, inputs.is_active).exp()
    advantages = active_advantages(inputs)
    objective = torch.minimum(ratios * advantages, ratios.clamp(low, high) * advantages)
    clipped = is_clipped(ratios, advantages, low, high)
    return LossOutputs(-(inputs.weights * objective).sum(), ratio_metrics(inputs, ratios, clipped))


PPO = Loss("ppo", ppo, {**clip_settings(0.8, 1.2), **KL_SETTING}, SAMPLED)
