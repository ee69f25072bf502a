"""Sampling on the resident base: its logprobs are the trainer's, and company changes nothing."""

from collections.abc import Callable

import pytest
import torch

from openmint.errors import BadRequest
from openmint_trainer.banks import AdapterShape
from openmint_trainer.executor import Executor, TrainedPolicy, Work
from openmint_trainer.rollouts.contract import Sample, SampleRequest
from openmint_trainer.rollouts.decoding import MixedDecoder, open_stream
from openmint_trainer.rows import Portion, make_row

MakeExecutor = Callable[..., Executor]
MakeShape = Callable[..., AdapterShape]


def trained(executor: Executor, shape: AdapterShape, seed: int) -> TrainedPolicy:
    """A policy far from the base, so that taking one for the other is seen."""
    policy = executor.open(shape, seed)
    bank = executor.banks.bank_of(policy.slot)
    generator = torch.Generator().manual_seed(seed)
    for path in policy.slot.paths:
        b = bank.matrices("masters", policy.slot, path)[1]
        b.copy_(torch.randn(b.shape, generator=generator) * 0.3)
    bank.refresh(policy.slot)
    return policy


def request(seed: int, prompts: tuple[tuple[int, ...], ...], count: int = 4, max_tokens: int = 12) -> SampleRequest:
    return SampleRequest("sha256:x", prompts, count, max_tokens, seed)


def decode(decoder: MixedDecoder, *asked: tuple[TrainedPolicy, SampleRequest]) -> list[list[Sample]]:
    streams = [open_stream("k", policy, wanted) for policy, wanted in asked]
    for stream in streams:
        decoder.open(stream)
    while not decoder.is_idle:
        decoder.advance()
    return [stream.samples() for stream in streams]


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_logprobs_are_those_of_the_trainers_own_pass(
    dtype: torch.dtype, most: float, make_executor: MakeExecutor, make_shape: MakeShape
) -> None:
    executor = make_executor(dtype)
    policy = trained(executor, make_shape(), 1)
    wanted = request(5, ((1, 2, 3), (7, 8, 9, 10, 11)))
    (samples,) = decode(MixedDecoder(executor.base, None), (policy, wanted))
    assert [s.prompt_index for s in samples] == [0] * 4 + [1] * 4
    assert all(len(s.token_ids) == 12 and s.finish_reason == "length" for s in samples)
    assert len({s.token_ids for s in samples}) > 4
    for sample in samples:
        prompt = wanted.prompts[sample.prompt_index]
        row = make_row([*prompt, *sample.token_ids], [False] * len(prompt) + [True] * len(sample.token_ids))
        (result,) = executor.forward_backward([Work(policy, Portion((row,)))])
        assert result.logprobs.tolist() == pytest.approx(sample.logprobs, abs=most)


def test_a_stream_gives_the_same_samples_in_any_company(make_executor: MakeExecutor, make_shape: MakeShape) -> None:
    executor = make_executor()
    policies = [trained(executor, make_shape(rank=rank), seed) for seed, rank in enumerate((8, 4, 16))]
    prompts = (((1, 2, 3),), ((4, 5), (6,)), (tuple(range(40)),))
    asked = [(p, request(i, prompts[i], max_tokens=6 + 5 * i)) for i, p in enumerate(policies)]
    together = decode(MixedDecoder(executor.base, 3), *asked)
    for pair, samples in zip(asked, together, strict=True):
        assert decode(MixedDecoder(executor.base, 3), pair) == [samples]
    crowded = decode(MixedDecoder(executor.base, 3, max_pass_rows=48), *asked)
    assert crowded == together, "streams that take turns give the same too"
    assert together[0] != decode(MixedDecoder(executor.base, 3), (policies[1], asked[0][1]))[0]


def test_a_row_ends_at_the_end_token_and_the_others_go_on(make_executor: MakeExecutor, make_shape: MakeShape) -> None:
    executor = make_executor()
    policy = trained(executor, make_shape(), 1)
    (free,) = decode(MixedDecoder(executor.base, None), (policy, request(2, ((1, 2),), count=6)))
    end = free[0].token_ids[3]
    (ended,) = decode(MixedDecoder(executor.base, end), (policy, request(2, ((1, 2),), count=6)))
    for whole, cut in zip(free, ended, strict=True):
        stop = whole.token_ids.index(end) + 1 if end in whole.token_ids else len(whole.token_ids)
        assert cut.token_ids == whole.token_ids[:stop]
        assert cut.finish_reason == ("stop" if end in whole.token_ids else "length")


def test_frequencies_are_those_of_the_distribution(make_executor: MakeExecutor, make_shape: MakeShape) -> None:
    executor = make_executor()
    policy = trained(executor, make_shape(), 1)
    samples = [
        sample
        for seed in range(4)
        for sample in decode(
            MixedDecoder(executor.base, None), (policy, request(seed, ((1, 2),), count=500, max_tokens=1))
        )[0]
    ]
    counts: dict[int, int] = {}
    logprobs: dict[int, float] = {}
    for sample in samples:
        counts[sample.token_ids[0]] = counts.get(sample.token_ids[0], 0) + 1
        logprobs[sample.token_ids[0]] = sample.logprobs[0]
    token = max(counts, key=counts.__getitem__)
    expected = float(torch.tensor(logprobs[token]).exp())
    assert counts[token] / 2000 == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 2000) ** 0.5)


def test_prompts_that_no_pass_can_hold_are_refused(make_executor: MakeExecutor, make_shape: MakeShape) -> None:
    executor = make_executor()
    policy = trained(executor, make_shape(), 1)
    with pytest.raises(BadRequest, match="have 40 tokens, more than this trainer's 32"):
        MixedDecoder(executor.base, None, max_pass_rows=32).open(
            open_stream("k", policy, request(0, (tuple(range(40)),)))
        )
