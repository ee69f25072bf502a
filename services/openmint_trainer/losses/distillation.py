"""Learning from a teacher: what turns its log-probabilities into advantages (on-policy) or weights (off-policy).

Neither is a loss by itself: the first feeds importance_sampling, ppo or cispo, the second cross_entropy.
"""

import torch


def distillation_advantages(
    sampler_logprobs: torch.Tensor,
    teacher_logprobs: torch.Tensor,
    mask: torch.Tensor,
    coefficient: float = 1.0,
    discount: float = 0.0,
) -> torch.Tensor:
    """Advantages that pull the policy towards a teacher on its own samples (reverse KL); to be added to others.

    a_t = -coefficient * mask_t * (sampler_logprobs_t - teacher_logprobs_t); with a discount g > 0 position t gets the
    sum over u >= t of g^(u - t) * a_u.

    Shapes: all [L] of one row, log-probabilities of the sampled tokens in nats; where the mask is 0 they may be
    anything.
    Source: Agarwal et al. 2023, arXiv:2306.13649, as per-token rewards; the Tinker cookbook's on-policy distillation.
    """
    zero = torch.zeros_like(sampler_logprobs)
    gains = torch.where(mask != 0, -coefficient * mask * (sampler_logprobs - teacher_logprobs), zero)
    if discount > 0:
        running = torch.zeros((), dtype=gains.dtype)
        for position in range(len(gains) - 1, -1, -1):
            running = gains[position] + discount * running
            gains[position] = running
    return gains


def top_k_weights(teacher_logprobs: torch.Tensor) -> torch.Tensor:
    """A teacher's K likeliest tokens as cross entropy's weights: their probabilities, renormalised to add up to 1.

    Shapes: [L, K] in nats, -inf where a position has fewer than K tokens, which get weight 0; the weights are [L, K].
    A position with none of them gets zeros.
    """
    weights = torch.softmax(teacher_logprobs, dim=-1)
    return torch.where(torch.isneginf(teacher_logprobs), torch.zeros_like(weights), weights)
