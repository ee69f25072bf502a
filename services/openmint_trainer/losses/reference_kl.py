"""How far a policy has gone from the base: the penalty that any policy-gradient loss may add."""

import torch

from openmint_trainer.losses.inputs import LossInputs, LossOutputs


def reference_kl(inputs: LossInputs) -> LossOutputs:
    """KL(policy ‖ base), estimated at the sampled tokens.

    loss = sum over positions of w * (exp(d) - d - 1), with d = reference_logprobs - logprobs.

    Each term is at least 0, and its mean over the policy's own samples is the divergence. Its gradient,
    w * (1 - exp(d)), is 0 where both agree; it is not the gradient of the divergence when the tokens are of an older
    revision.

    Shapes: logprobs, weights and reference_logprobs (nats) are [N]; loss is a scalar.
    Metrics: reference_kl_sum (nats, each active position once, without its weight) and reference_tokens.
    Source: Shao et al. 2024, arXiv:2402.03300, eq. 4; the estimator is Schulman's k3 (2020).
    """
    active = inputs.is_active
    difference = torch.where(active, inputs.of("reference_logprobs") - inputs.logprobs, 0.0)
    divergence = torch.expm1(difference) - difference
    return LossOutputs(
        loss=torch.where(active, inputs.weights * divergence, 0.0).sum(),
        metrics={
            "reference_kl_sum": float(divergence.detach().sum()),
            "reference_tokens": float(active.sum()),
        },
    )
