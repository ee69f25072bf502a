"""Losses of sampled tokens, each an advantage times a function of the ratio to the sampling policy."""

from collections.abc import Mapping
from types import MappingProxyType

import torch

from openmint_trainer.losses.inputs import LossInputs, LossOutputs

NO_CONFIG: Mapping[str, float] = MappingProxyType({})


def importance_sampling(inputs: LossInputs, config: Mapping[str, float] = NO_CONFIG) -> LossOutputs:
    """loss = -sum of w * r * A, with r = exp(logprobs - sampler_logprobs); all [N].

    Source: the `importance_sampling` loss of the Tinker API documentation.
    """
    del config
    ratios, advantages = _of(inputs)
    return LossOutputs(loss=-(inputs.weights * ratios * advantages).sum())


def ppo(inputs: LossInputs, config: Mapping[str, float] = NO_CONFIG) -> LossOutputs:
    """loss = -sum of w * min(r * A, clip(r, low, high) * A); all [N].

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7, summed.
    """
    ratios, advantages = _of(inputs)
    clipped = ratios.clamp(config.get("clip_low_threshold", 0.8), config.get("clip_high_threshold", 1.2))
    return LossOutputs(loss=-(inputs.weights * torch.minimum(ratios * advantages, clipped * advantages)).sum())


def cispo(inputs: LossInputs, config: Mapping[str, float] = NO_CONFIG) -> LossOutputs:
    """loss = -sum of w * clip(r, low, high) * logprobs * A, the ratio without gradient; all [N].

    Source: the `cispo` loss of the Tinker API documentation; MiniMax 2025, arXiv:2506.13585.
    """
    ratios, advantages = _of(inputs)
    clipped = ratios.detach().clamp(config.get("clip_low_threshold", 0.8), config.get("clip_high_threshold", 1.2))
    return LossOutputs(loss=-(inputs.weights * clipped * inputs.logprobs * advantages).sum())


def _of(inputs: LossInputs) -> tuple[torch.Tensor, torch.Tensor]:
    assert inputs.sampler_logprobs is not None and inputs.advantages is not None
    return (inputs.logprobs - inputs.sampler_logprobs).exp(), inputs.advantages
