"""Log-probabilities of target tokens, with logits only where a token is trained on, a few positions at a time.

Shape legend: N trained positions, K targets per position, H hidden, V vocabulary.
"""

from typing import Any

import torch

CHUNK_POSITIONS = 512
"""At a vocabulary of 49152 this bounds the logits to 100 MB in float32."""


class _TargetLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NH: torch.Tensor, head_VH: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        logprobs_N = torch.empty(hidden_NH.shape[0], dtype=torch.float32, device=hidden_NH.device)
        unit_NH = torch.empty_like(hidden_NH)
        for start in range(0, hidden_NH.shape[0], CHUNK_POSITIONS):
            chunk = slice(start, start + CHUNK_POSITIONS)
            logits = (hidden_NH[chunk] @ head_VH.t()).float()
            norms = torch.logsumexp(logits, dim=1, keepdim=True)
            targets = targets_N[chunk, None]
            logprobs_N[chunk] = (logits.gather(1, targets) - norms)[:, 0]
            # d logprob / d hidden = head[target] - softmax @ head. It scales with the gradient that comes later, so
            # it is made now and the logits need not be kept or made again.
            slope = logits.sub_(norms).exp_().neg_()
            slope.scatter_add_(1, targets, torch.ones_like(targets, dtype=slope.dtype))
            unit_NH[chunk] = slope.to(head_VH.dtype) @ head_VH
        ctx.save_for_backward(unit_NH)
        return logprobs_N

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (unit_NH,) = ctx.saved_tensors
        return (unit_NH * gradients[0][:, None]).to(unit_NH.dtype), None, None


class _ManyTargetLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NH: torch.Tensor, head_VH: torch.Tensor, targets_NK: torch.Tensor) -> torch.Tensor:
        logprobs_NK = torch.empty(targets_NK.shape, dtype=torch.float32, device=hidden_NH.device)
        mean_NH = torch.empty_like(hidden_NH)
        for start in range(0, hidden_NH.shape[0], CHUNK_POSITIONS):
            chunk = slice(start, start + CHUNK_POSITIONS)
            logits = (hidden_NH[chunk] @ head_VH.t()).float()
            norms = torch.logsumexp(logits, dim=1, keepdim=True)
            logprobs_NK[chunk] = logits.gather(1, targets_NK[chunk]) - norms
            # The K gradients of a position share softmax @ head; the rows of the head are looked up when they come.
            mean_NH[chunk] = logits.sub_(norms).exp_().to(head_VH.dtype) @ head_VH
        ctx.save_for_backward(mean_NH, head_VH, targets_NK)
        return logprobs_NK

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        mean_NH, head_VH, targets_NK = ctx.saved_tensors
        grad_NK = gradients[0]
        hidden_NH = mean_NH * -grad_NK.sum(1, keepdim=True)
        for column in range(targets_NK.shape[1]):
            hidden_NH.addcmul_(head_VH[targets_NK[:, column]], grad_NK[:, column, None])
        return hidden_NH.to(mean_NH.dtype), None, None


def target_logprobs(hidden_NH: torch.Tensor, head_VH: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log p(target) at each position, float32, in nats; the head is frozen.

    Shapes: targets and the answer are [N], or [N, K] for several targets per position.
    """
    function = _TargetLogprobs if targets.dim() == 1 else _ManyTargetLogprobs
    logprobs = function.apply(hidden_NH, head_VH, targets)
    assert isinstance(logprobs, torch.Tensor)
    return logprobs


def frozen_logprobs(hidden_NH: torch.Tensor, head_VH: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """The same numbers [N] without a gradient, at half the cost."""
    logprobs_N = torch.empty(hidden_NH.shape[0], dtype=torch.float32, device=hidden_NH.device)
    for start in range(0, hidden_NH.shape[0], CHUNK_POSITIONS):
        chunk = slice(start, start + CHUNK_POSITIONS)
        logits = (hidden_NH[chunk] @ head_VH.t()).float()
        norms = torch.logsumexp(logits, dim=1, keepdim=True)
        logprobs_N[chunk] = (logits.gather(1, targets_N[chunk, None]) - norms)[:, 0]
    return logprobs_N
