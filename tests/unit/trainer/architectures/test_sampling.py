"""What the trainer samples by itself has, on every architecture, the log-probabilities of its own training pass."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from openmint.errors import BadRequest
from openmint_trainer.banks import AdapterShape
from openmint_trainer.executor import Executor, Work
from openmint_trainer.resident_base import adopt_base, use_one_thread
from openmint_trainer.rollouts.contract import SampleRequest
from openmint_trainer.rollouts.decoding import MixedDecoder, open_stream
from openmint_trainer.rows import Portion, make_row

BuildModel = Callable[..., PreTrainedModel]

PROMPTS = ((1, 2, 3), tuple(range(20, 33)))
"""One is shorter than the sliding windows of 8, and samples of 12 tokens lead beyond them."""

use_one_thread()


def test_logprobs_are_those_of_the_training_pass_or_the_base_is_refused(
    model_type: str, build_model: BuildModel
) -> None:
    base = adopt_base(build_model(model_type), model_type, "sha256:" + "0" * 64)
    executor = Executor(base, 2)
    targets = tuple(sorted({path.rpartition(".")[2] for path in base.modules}))
    policy = executor.open(AdapterShape(8, 16.0, targets), seed=1)
    bank = executor.banks.bank_of(policy.slot)
    generator = torch.Generator().manual_seed(1)
    for path in policy.slot.paths:
        b = bank.matrices("masters", policy.slot, path)[1]
        b.copy_(torch.randn(b.shape, generator=generator) * 0.1)
    bank.refresh(policy.slot)
    decoder = MixedDecoder(base, None)
    stream = open_stream("k", policy, SampleRequest("sha256:x", PROMPTS, 3, 12, 5))
    if not base.packs_rows:
        with pytest.raises(BadRequest, match="runs row by row here and can't be sampled"):
            decoder.open(stream)
        return
    decoder.open(stream)
    while not decoder.is_idle:
        decoder.advance()
    for sample in stream.samples():
        prompt = PROMPTS[sample.prompt_index]
        row = make_row([*prompt, *sample.token_ids], [0.0] * len(prompt) + [1.0] * len(sample.token_ids))
        (result,) = executor.forward_backward([Work(policy, Portion((row,)))])
        assert result.logprobs.tolist() == pytest.approx(sample.logprobs, abs=1e-4)
