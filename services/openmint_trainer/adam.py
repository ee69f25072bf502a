"""Adam with decoupled weight decay over one slot's row, and the schedules of its learning rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from openmint.errors import Diverged
from openmint.events import OptimizerSpec


@dataclass(frozen=True, slots=True)
class AdamParams:
    """One step's parameters. `clip_norm` is of this policy's gradient alone; 0 is off."""

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0


@dataclass(frozen=True, slots=True)
class Moments:
    """Where a slot's weights, gradient and moments lie; all [width] float32, changed in place."""

    weights: torch.Tensor
    gradient: torch.Tensor
    moment1: torch.Tensor
    moment2: torch.Tensor


def adam_step(row: Moments, params: AdamParams, number: int) -> float:
    """Apply update `number` (from 1) and clear the gradient; returns the gradient's norm before clipping.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2.
    Raises: Diverged when the gradient or the new weights are not finite; the gradient is cleared even then.
    """
    gradient = row.gradient
    try:
        norm = float(torch.linalg.vector_norm(gradient))
        if not math.isfinite(norm):
            raise Diverged("the gradient is not finite; lower optimizer.learning_rate or look at the data")
        if params.clip_norm and norm > params.clip_norm:
            gradient.mul_(params.clip_norm / norm)
        row.moment1.lerp_(gradient, 1 - params.beta1)
        row.moment2.mul_(params.beta2).addcmul_(gradient, gradient, value=1 - params.beta2)
        correction1 = 1 - params.beta1**number
        correction2 = 1 - params.beta2**number
        if params.weight_decay:
            row.weights.mul_(1 - params.learning_rate * params.weight_decay)
        # The cleared gradient doubles as the scratch space for the denominator.
        torch.sqrt(row.moment2, out=gradient)
        gradient.mul_(correction2**-0.5).add_(params.epsilon)
        row.weights.addcdiv_(row.moment1, gradient, value=-params.learning_rate / correction1)
    finally:
        gradient.zero_()
    if not bool(torch.isfinite(row.weights.sum())):
        raise Diverged("the weights are no longer finite; lower optimizer.learning_rate")
    return norm


def _constant(_: float) -> float:
    return 1.0


def _linear(done: float) -> float:
    return 1.0 - done


def _cosine(done: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * done))


SCHEDULES: dict[str, Callable[[float], float]] = {"constant": _constant, "linear": _linear, "cosine": _cosine}
"""Share of the learning rate, by the share of the steps after warm-up that are done."""


def params_at(spec: OptimizerSpec, step: int, steps: int) -> AdamParams:
    """The parameters of step `step` (from 1) of `steps`."""
    if step <= spec.warmup_steps:
        share = step / spec.warmup_steps
    else:
        share = SCHEDULES[spec.schedule]((step - 1 - spec.warmup_steps) / max(1, steps - spec.warmup_steps))
    return AdamParams(
        learning_rate=spec.learning_rate * share,
        beta1=spec.beta1,
        beta2=spec.beta2,
        epsilon=spec.epsilon,
        weight_decay=spec.weight_decay,
        clip_norm=spec.clip_norm,
    )
