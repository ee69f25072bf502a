"""Stock PEFT is the oracle for what a LoRA adapter means."""

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from openmint_trainer.adam import AdamParams
from openmint_trainer.banks import AdapterShape
from openmint_trainer.executor import Executor, Work
from openmint_trainer.rows import Portion


@pytest.mark.parametrize(("rank", "alpha"), [(8, 16), (3, 12)])
def test_loss_gradient_and_steps_equal_stock_peft(
    rank: int,
    alpha: int,
    make_executor: Callable[..., Executor],
    make_model: Callable[..., LlamaForCausalLM],
    make_shape: Callable[..., AdapterShape],
    make_portion: Callable[..., Portion],
) -> None:
    executor = make_executor()
    stranger = executor.open(make_shape(rank=8, alpha=64.0), 99)
    policy = executor.open(make_shape(rank, alpha), 0)
    bank = executor.banks.bank_of(policy.slot)
    generator = torch.Generator().manual_seed(1)
    for path in policy.slot.paths:
        _, b = bank.matrices("masters", policy.slot, path)
        b.copy_(torch.randn(b.shape, generator=generator) * 0.1)
    bank.refresh(policy.slot)

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(make_shape().targets), lora_dropout=0.0)
    stock = get_peft_model(make_model(), config)
    parameters: dict[str, torch.Tensor] = {
        name.removeprefix("base_model.model.").replace(".default.weight", ""): parameter
        for name, parameter in stock.named_parameters()
        if parameter.requires_grad
    }
    with torch.no_grad():
        for path in policy.slot.paths:
            a, b = bank.matrices("masters", policy.slot, path)
            parameters[f"{path}.lora_A"].copy_(a)
            parameters[f"{path}.lora_B"].copy_(b)
    optimizer = torch.optim.AdamW(list(parameters.values()), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)

    for step in range(3):
        portion = make_portion((7, 33, 12), seed=step)
        _, result = executor.forward_backward([Work(stranger, make_portion(seed=77)), Work(policy, portion)])
        loss = torch.zeros(())
        for row in portion.rows:
            logprobs = stock(input_ids=row.tokens[None]).logits[0].log_softmax(-1)
            loss = loss - (row.weights * logprobs.gather(1, row.targets[:, None])[:, 0]).sum()
        optimizer.zero_grad()
        loss.backward()
        assert result.loss == pytest.approx(float(loss.detach()), rel=1e-5)
        if step == 0:
            for path in policy.slot.paths:
                ours = bank.matrices("gradients", policy.slot, path)
                for gradient, part in zip(ours, ("lora_A", "lora_B"), strict=True):
                    theirs = parameters[f"{path}.{part}"].grad
                    torch.testing.assert_close(gradient, theirs, rtol=1e-4, atol=1e-4)
        executor.optim_step(policy, AdamParams(learning_rate=1e-2, weight_decay=0.1, clip_norm=0.0))
        optimizer.step()
    for path in policy.slot.paths:
        for ours, part in zip(bank.matrices("masters", policy.slot, path), ("lora_A", "lora_B"), strict=True):
            torch.testing.assert_close(ours, parameters[f"{path}.{part}"].detach(), rtol=1e-3, atol=1e-3)
