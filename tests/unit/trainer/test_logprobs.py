"""Logits are made for a few positions at a time, however many are trained on."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from openmint_trainer.logprobs import CHUNK_POSITIONS, target_logprobs


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that any operation's result has."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_no_more_than_a_chunk_of_logits_exists_and_the_gradient_is_that_of_all() -> None:
    positions, hidden, vocabulary = 3 * CHUNK_POSITIONS + 7, 8, 100
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(positions, hidden, generator=generator, requires_grad=True)
    head = torch.randn(vocabulary, hidden, generator=generator)
    targets = torch.randint(vocabulary, (positions,), generator=generator)
    weights = torch.randn(positions, generator=generator)
    with LargestTensor() as seen:
        (target_logprobs(x, head, targets) * weights).sum().backward()
    assert seen.elements == CHUNK_POSITIONS * vocabulary
    assert x.grad is not None
    found, x.grad = x.grad, None
    whole = (x @ head.t()).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    (whole * weights).sum().backward()
    torch.testing.assert_close(found, x.grad, rtol=1e-4, atol=1e-5)
