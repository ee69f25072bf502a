"""Rollouts: episodes of policies in training, sampled on engines or on the resident base."""

from openmint_trainer.rollouts.contract import Sample, Sampler, SampleRequest, Samplers

__all__ = ["Sample", "SampleRequest", "Sampler", "Samplers"]
