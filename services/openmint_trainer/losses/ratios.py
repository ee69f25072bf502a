"""The ratio between current and sampling policy, and what is counted of it: shared by the policy-gradient losses."""

import torch

from openmint_trainer.losses.inputs import LossInputs

SAMPLED = ("sampler_logprobs", "advantages")
"""What rows of samples carry."""


def log_ratios(inputs: LossInputs, where: torch.Tensor) -> torch.Tensor:
    """logprobs - sampler_logprobs at the positions `where` (bool [N]) and 0 elsewhere; nats, [N], with gradient."""
    return torch.where(where, inputs.logprobs - inputs.of("sampler_logprobs"), 0.0)


def active_advantages(inputs: LossInputs) -> torch.Tensor:
    """The advantages, and 0 where nothing is trained; [N]."""
    return torch.where(inputs.is_active, inputs.of("advantages"), 0.0)


def is_clipped(ratios: torch.Tensor, advantages: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """bool [N]: min(r * A, clip(r) * A) takes the clipped side, and so gives no gradient.

    That is r above `high` with a positive advantage or r below `low` with a negative one; never the other way round.
    """
    return ((ratios > high) & (advantages > 0)) | ((ratios < low) & (advantages < 0))


def ratio_metrics(inputs: LossInputs, ratios: torch.Tensor, clipped: torch.Tensor | None = None) -> dict[str, float]:
    """Sums over the active positions.

    ratio_tokens (their number), ratio_sum, sampler_gap_sum (of |logprobs - sampler_logprobs|, nats),
    advantage_zero_tokens, and with `clipped` clipped_tokens: those that give no gradient, or a bounded one.
    """
    active = inputs.is_active
    with torch.no_grad():
        metrics = {
            "ratio_tokens": float(active.sum()),
            "ratio_sum": float(torch.where(active, ratios, 0.0).sum()),
            "sampler_gap_sum": float(log_ratios(inputs, active).abs().sum()),
            "advantage_zero_tokens": float((active & (inputs.of("advantages") == 0)).sum()),
        }
        if clipped is not None:
            metrics["clipped_tokens"] = float((active & clipped).sum())
    return metrics
