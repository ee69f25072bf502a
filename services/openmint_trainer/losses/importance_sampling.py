"""Policy gradient, corrected for who sampled."""

from collections.abc import Mapping

from openmint_trainer.losses.inputs import LossInputs, LossOutputs
from openmint_trainer.losses.loss import KL_SETTING, Loss
from openmint_trainer.losses.ratios import SAMPLED, active_advantages, log_ratios, ratio_metrics


def importance_sampling(inputs: LossInputs, config: Mapping[str, float]) -> LossOutputs:
    """Importance-weighted policy gradient (REINFORCE when policy and sampler agree).

    loss = -sum over positions of w * r * A, with r = exp(logprobs - sampler_logprobs).

    Shapes: logprobs, sampler_logprobs (nats), advantages and weights are [N]; loss is a scalar.
    Settings: kl_coef (0), the weight of `reference_kl`.
    Metrics: `ratio_metrics`.
    Source: the `importance_sampling` loss of the Tinker API documentation; unlike there each term has a weight, 1 by
        default.
    """
    del config
    ratios = log_ratios(inputs, inputs.is_active).exp()
    loss = -(inputs.weights * ratios * active_advantages(inputs)).sum()
    return LossOutputs(loss, ratio_metrics(inputs, ratios))


IMPORTANCE_SAMPLING = Loss("importance_sampling", importance_sampling, KL_SETTING, SAMPLED)
