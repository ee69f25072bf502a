"""Policy gradient with clipped importance weights."""

from collections.abc import Mapping

import torch

from openmint_trainer.losses.inputs import LossInputs, LossOutputs
from openmint_trainer.losses.loss import CLIP_HIGH, CLIP_LOW, KL_SETTING, Loss, clip_settings
from openmint_trainer.losses.ratios import SAMPLED, active_advantages, log_ratios, ratio_metrics


def cispo(inputs: LossInputs, config: Mapping[str, float]) -> LossOutputs:
    """Policy gradient whose importance weight is clipped and held constant, so that every token keeps a gradient.

    loss = -sum over positions of w * sg(clip(r, low, high)) * p * A, with p = logprobs and
    r = exp(p - sampler_logprobs); sg gives no gradient.

    Shapes: logprobs, sampler_logprobs (nats), advantages and weights are [N]; loss is a scalar.
    Settings: clip_low_threshold (0.8), clip_high_threshold (1.2), of r itself; kl_coef (0).
    Metrics: `ratio_metrics` with clipped_tokens: those whose importance weight was cut, whatever the advantage.
    Source: MiniMax 2025, arXiv:2506.13585, eq. 4 and 5, which bounds r from above only (here low = 0); summed, with
        both thresholds, as the `cispo` loss of the Tinker API documentation.
    """
    low, high = config[CLIP_LOW], config[CLIP_HIGH]
    active = inputs.is_active
    ratios = log_ratios(inputs, active).detach().exp()
    logprobs = torch.where(active, inputs.logprobs, 0.0)
    loss = -(inputs.weights * ratios.clamp(low, high) * logprobs * active_advantages(inputs)).sum()
    return LossOutputs(loss, ratio_metrics(inputs, ratios, (ratios < low) | (ratios > high)))


CISPO = Loss("cispo", cispo, {**clip_settings(0.8, 1.2), **KL_SETTING}, SAMPLED)
