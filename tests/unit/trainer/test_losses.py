"""The registry of losses: what a request may ask of them, and the log-probabilities that they are fed with."""

import math

import pytest
import torch

from openmint.errors import BadRequest
from openmint_trainer.logprobs import CHUNK_POSITIONS, frozen_logprobs, target_logprobs
from openmint_trainer.losses import LOSSES, LossInputs, find_loss


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


@pytest.mark.parametrize(
    ("name", "config", "field", "message"),
    [
        ("ppo", {"epsilon": 0.2}, "epsilon", r"ppo has no setting 'epsilon'; known are clip_high_threshold"),
        ("cross_entropy", {"beta": 0.2}, "beta", "known are none"),
        ("cispo", {"clip_low_threshold": math.nan}, "clip_low_threshold", "is nan, not a finite number"),
        ("dro", {"beta": math.inf}, "beta", "is inf, not a finite number"),
        ("dro", {"beta": "much"}, "beta", "is much, not a finite number"),
        ("dpo", {"beta": True}, "beta", "is True, not a finite number"),
        ("dpo", {"beta": -1.0}, "beta", "is -1.0; it must be at least 0"),
        ("gspo", {"kl_coef": -1.0}, "kl_coef", "must be at least 0"),
        ("ppo", {"clip_low_threshold": 1.3}, "clip_low_threshold", r"1.3 is above clip_high_threshold 1.2"),
    ],
)
def test_a_setting_that_means_nothing_is_named(name: str, config: dict[str, float], field: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message) as caught:
        find_loss(name).resolve(config)
    assert caught.value.field == f"loss.config.{field}"


def test_what_is_not_set_has_its_default() -> None:
    assert find_loss("ppo").resolve({"clip_high_threshold": 1.5}) == {
        "clip_low_threshold": 0.8,
        "clip_high_threshold": 1.5,
        "kl_coef": 0.0,
    }


@pytest.mark.parametrize("name", sorted(name for name, loss in LOSSES.items() if loss.needs))
def test_rows_without_what_the_loss_reads_are_refused(name: str) -> None:
    with pytest.raises(BadRequest, match=f"loss {name} needs {LOSSES[name].needs[0]} in every row"):
        find_loss(name)(LossInputs(-torch.rand(4), torch.ones(4), rows=(2, 2)))


def test_the_penalty_needs_reference_logprobs_only_when_it_is_on() -> None:
    loss = find_loss("ppo")
    sampled = LossInputs(-torch.ones(2), torch.ones(2), sampler_logprobs=-torch.ones(2), advantages=torch.ones(2))
    assert "reference_logprobs" not in loss.needs_with({})
    assert "reference_kl_sum" not in loss(sampled).metrics
    assert "reference_logprobs" in loss.needs_with({"kl_coef": 0.1})
    with pytest.raises(BadRequest, match="needs reference_logprobs"):
        loss(sampled, {"kl_coef": 0.1})


def test_pairs_that_are_none_are_refused() -> None:
    three = LossInputs(-torch.ones(3), torch.ones(3), reference_logprobs=-torch.ones(3), rows=(1, 1, 1))
    with pytest.raises(BadRequest, match="takes pairs of rows, and there are 3"):
        find_loss("dpo")(three)
    uneven = LossInputs(-torch.ones(2), torch.tensor([1.0, 0.5]), reference_logprobs=-torch.ones(2), rows=(1, 1))
    with pytest.raises(BadRequest, match="a pair has one weight"):
        find_loss("dpo")(uneven)


def test_several_targets_are_refused_by_a_loss_of_samples() -> None:
    inputs = LossInputs(-torch.ones(2, 3), torch.ones(2, 3), sampler_logprobs=-torch.ones(2), advantages=torch.ones(2))
    with pytest.raises(BadRequest, match="ppo takes one target per position"):
        find_loss("ppo")(inputs)


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
    assert torch.equal(frozen_logprobs(hidden.detach(), head, targets), ours.detach())


def test_logprobs_of_several_targets_and_their_gradient_equal_the_plain_computation() -> None:
    generator = torch.Generator().manual_seed(0)
    positions = CHUNK_POSITIONS + 3
    hidden = torch.randn(positions, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(50, 16, generator=generator, dtype=torch.float64)
    targets = torch.randint(50, (positions, 4), generator=generator)
    slopes = torch.randn(positions, 4, generator=generator)
    ours = target_logprobs(hidden, head, targets)
    (gradient,) = torch.autograd.grad((ours * slopes).sum(), hidden)
    plain = (hidden @ head.t()).log_softmax(1).gather(1, targets)
    (expected,) = torch.autograd.grad((plain * slopes).sum(), hidden)
    torch.testing.assert_close(ours.double(), plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_a_bfloat16_base_is_normalised_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(20, 16, generator=generator).bfloat16()
    head = torch.randn(5000, 16, generator=generator).bfloat16()
    targets = torch.randint(5000, (20,), generator=generator)
    exact = (hidden @ head.t()).double().log_softmax(1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(target_logprobs(hidden, head, targets).double(), exact, rtol=1e-6, atol=1e-6)
