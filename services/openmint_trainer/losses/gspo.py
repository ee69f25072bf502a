"""Group sequence policy optimisation: the ratio is of the whole row, as the reward is."""

from collections.abc import Mapping

import torch

from openmint_trainer.losses.inputs import LossInputs, LossOutputs
from openmint_trainer.losses.loss import CLIP_HIGH, CLIP_LOW, KL_SETTING, Loss, clip_settings
from openmint_trainer.losses.ratios import SAMPLED, active_advantages, is_clipped, log_ratios, ratio_metrics


def gspo(inputs: LossInputs, config: Mapping[str, float]) -> LossOutputs:
    """Clipped policy gradient with one ratio per row: the sequence variant.

    loss = -sum over positions of w * min(s * A, clip(s, low, high) * A), with s = exp(mean over M of p - q) the ratio
    of the position's row, M its sequence mask (None: its trained positions), p = logprobs and q = sampler_logprobs.
    Each position's gradient reaches every position of M.

    Shapes: logprobs, sampler_logprobs (nats), advantages, weights and sequence_mask are [N]; loss is a scalar.
    Settings: clip_low_threshold (0.9997), clip_high_threshold (1.0004), of s itself; kl_coef (0).
    Metrics: `ratio_metrics` of s with clipped_tokens, the positions of clipped rows.
    Source: Zheng et al. 2025, arXiv:2507.18071, eq. 5 to 7; defaults from its section 5.1. The paper has one term per
        row: give a row's positions weights that add up to 1 for that.
    """
    return _clipped(inputs, inputs.at_positions(_mean_log_ratios(inputs)).exp(), config)


def gspo_token(inputs: LossInputs, config: Mapping[str, float]) -> LossOutputs:
    """The token variant: as `gspo`, but a position's gradient stays its own, so advantages may differ within a row.

    loss = -sum over positions of w * min(s_t * A, clip(s_t, low, high) * A), with s_t = exp(sg(L) + p - sg(p)) and L =
    mean over M of p - q; sg gives no gradient. Value and clipping are those of `gspo`, and so is the gradient when
    weights and advantages are equal within each row and M holds the same positions.

    Shapes, settings and metrics: as `gspo`.
    Source: Zheng et al. 2025, arXiv:2507.18071, eq. 13 and 14; the `gspo` loss of the Tinker API with its
        `sequence_ratio_mask` as M.
    """
    row_log_ratios = inputs.at_positions(_mean_log_ratios(inputs).detach())
    logprobs = torch.where(inputs.is_active, inputs.logprobs, 0.0)
    return _clipped(inputs, (row_log_ratios + (logprobs - logprobs.detach())).exp(), config)


def _mean_log_ratios(inputs: LossInputs) -> torch.Tensor:
    mask = inputs.in_sequence
    sums = inputs.sum_by_row(log_ratios(inputs, mask))
    return sums / inputs.sum_by_row(mask.to(sums.dtype)).clamp_min(1.0)


def _clipped(inputs: LossInputs, ratios: torch.Tensor, config: Mapping[str, float]) -> LossOutputs:
    low, high = config[CLIP_LOW], config[CLIP_HIGH]
    advantages = active_advantages(inputs)
    objective = torch.minimum(ratios * advantages, ratios.clamp(low, high) * advantages)
    loss = -torch.where(inputs.is_active, inputs.weights * objective, 0.0).sum()
    return LossOutputs(loss, ratio_metrics(inputs, ratios, is_clipped(ratios, advantages, low, high)))


_SETTINGS = {**clip_settings(1 - 3e-4, 1 + 4e-4), **KL_SETTING}
GSPO = Loss("gspo", gspo, _SETTINGS, SAMPLED)
GSPO_TOKEN = Loss("gspo_token", gspo_token, _SETTINGS, SAMPLED)
