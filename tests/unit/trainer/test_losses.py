"""Each loss against its formula."""

import pytest
import torch

from openmint.errors import BadRequest
from openmint_trainer.logprobs import CHUNK_POSITIONS, target_logprobs
from openmint_trainer.losses import LOSSES, LossInputs, find_loss


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_sum_over_positions_so_that_micro_batches_add_up(name: str) -> None:
    logprobs, weights = -torch.rand(12).double(), torch.rand(12).double()
    loss = find_loss(name)
    sampled, advantages = logprobs - 0.3, weights - 0.5
    whole = loss(LossInputs(logprobs, weights, sampled, advantages)).loss
    first, second = (
        loss(LossInputs(logprobs[part], weights[part], sampled[part], advantages[part])).loss
        for part in (slice(5), slice(5, None))
    )
    parts = first + second
    assert float(whole) == pytest.approx(float(parts), rel=1e-12)


def test_cross_entropy_is_the_weighted_sum_and_takes_negative_weights() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -4.0], requires_grad=True)
    output = find_loss("cross_entropy")(LossInputs(logprobs, torch.tensor([1.0, -0.5, 2.0])))
    output.loss.backward()
    assert float(output.loss.detach()) == pytest.approx(1.0 - 1.0 + 8.0)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-1.0, 0.5, -2.0]


def test_an_unknown_loss_is_named_with_the_known_ones() -> None:
    with pytest.raises(BadRequest, match=r"'stable_reinforce' is unknown; known are .*cross_entropy"):
        find_loss("stable_reinforce")


def test_chunked_logprobs_and_their_gradient_equal_the_plain_computation() -> None:
    generator = torch.Generator().manual_seed(0)
    positions = CHUNK_POSITIONS + 37
    hidden = torch.randn(positions, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(50, 16, generator=generator, dtype=torch.float64)
    targets = torch.randint(50, (positions,), generator=generator)
    slopes = torch.randn(positions, generator=generator)
    ours = target_logprobs(hidden, head, targets)
    (gradient,) = torch.autograd.grad((ours * slopes).sum(), hidden)
    plain = (hidden @ head.t()).log_softmax(1).gather(1, targets[:, None])[:, 0]
    (expected,) = torch.autograd.grad((plain * slopes).sum(), hidden)
    torch.testing.assert_close(ours.double(), plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)
