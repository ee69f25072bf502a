"""Values and gradients of losses as other packages compute them, for tests/unit/trainer/test_loss_references.py.

Nothing of openmint is imported, and these packages are no dependency of it: run this in an environment of its own,

    python3.11 -m venv /tmp/oracles
    /tmp/oracles/bin/pip install torch==2.13.0 tuft==0.2.2 tinker==0.38.0 tinker-cookbook==0.6.1 trl==1.16.0
    /tmp/oracles/bin/python tests/oracles/make_loss_references.py

It writes loss_references.json beside itself. TuFT sums over tokens as we do. trl averages; its reductions are undone by
the weights that are written beside each value: a loss with those weights is what trl computed.
"""

import importlib.metadata
import importlib.util
import json
import math
import random
import sys
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

ROWS, LENGTH = 4, 4
OUTPUT = Path(__file__).with_name("loss_references.json")


def make_case(seed: int) -> dict[str, list[list[float]]]:
    """Four rows of four sampled tokens; ratios from 0.4 to 2.5, advantages of both signs and zero, one per row."""
    rng = random.Random(seed)
    p = [[rng.uniform(-4, -0.05) for _ in range(LENGTH)] for _ in range(ROWS)]
    q = [[x - rng.uniform(-0.9, 0.9) for x in row] for row in p]
    near = [[x - rng.uniform(-6e-4, 6e-4) for x in row] for row in p]
    ref = [[x + rng.uniform(-1, 1) for x in row] for row in p]
    a = [[value] * LENGTH for value in (1.3, -0.8, 0.0, -1.9)]
    return {"logprobs": p, "sampler_logprobs": q, "near_logprobs": near, "reference_logprobs": ref, "advantages": a}


def package_without_its_start(name: str) -> None:
    """Let submodules be imported without running the package's own start, which brings up a server."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    package = types.ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations or [])
    sys.modules[name] = package


def answer(package: str, loss: str, config: dict[str, float], value: torch.Tensor, p: torch.Tensor, **more: Any) -> Any:
    """One reference: the value, its gradient with respect to the log-probabilities, and how it was made."""
    (gradient,) = torch.autograd.grad(value, p)
    assert math.isfinite(float(value.detach()))
    return {
        "package": f"{package} {importlib.metadata.version(package)}",
        "loss": loss,
        "config": config,
        "value": float(value.detach()),
        "gradient": gradient.tolist(),
        **more,
    }


def from_tuft(case: dict[str, torch.Tensor]) -> list[Any]:
    package_without_its_start("tuft")
    from tuft.loss_fn import get_loss_fn

    clip = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
    settings = {"cross_entropy": {}, "importance_sampling": {}, "ppo": clip, "cispo": clip, "dro": {"beta": 0.3}}
    made: list[Any] = []
    for name, config in settings.items():
        p = case["logprobs"].clone().requires_grad_()
        inputs = {
            "target_logprobs": p,
            "logprobs": case["sampler_logprobs"],
            "advantages": case["advantages"],
            "weights": torch.ones_like(p),
        }
        value, _ = get_loss_fn(name)(inputs, config)
        made.append(answer("tuft", name, config, value, p, weights=torch.ones_like(p).tolist()))
    return made


class Accelerator:
    """One process: nothing is gathered from anywhere."""

    num_processes = 1
    sync_gradients = True

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def reduce(self, values: torch.Tensor, reduction: str) -> torch.Tensor:
        del reduction
        return values


def trl_loss(
    p: torch.Tensor, inputs: dict[str, torch.Tensor], low: float, high: float, **settings: Any
) -> torch.Tensor:
    """trl's GRPO loss of given log-probabilities: its own method, on an object that has just what the method reads."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    trainer = types.SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (p, torch.zeros_like(p), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        epsilon_low=1 - low,
        epsilon_high=high - 1,
        args=types.SimpleNamespace(delta=None, use_bias_correction_kl=False),
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        current_gradient_accumulation_steps=1,
        model=types.SimpleNamespace(training=True),
        accelerator=Accelerator(),
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        beta=0.0,
    )
    for name, value in settings.items():
        setattr(trainer, name, value)
    ids, mask = torch.zeros(ROWS, LENGTH, dtype=torch.int64), torch.ones(ROWS, LENGTH)
    given = {"prompt_ids": ids, "prompt_mask": mask, "completion_ids": ids, "completion_mask": mask, **inputs}
    return GRPOTrainer._compute_loss(trainer, None, given)


def from_trl(case: dict[str, torch.Tensor]) -> list[Any]:
    made: list[Any] = []
    mean = torch.full((ROWS, LENGTH), 1 / (ROWS * LENGTH))

    def run(loss: str, sampler: str, low: float, high: float, config: dict[str, float], **settings: Any) -> None:
        p = case["logprobs"].clone().requires_grad_()
        inputs = {
            "advantages": case["advantages"][:, 0],
            "old_per_token_logps": case[sampler],
            "ref_per_token_logps": case["reference_logprobs"],
        }
        value = trl_loss(p, inputs, low, high, **settings)
        config = {"clip_low_threshold": low, "clip_high_threshold": high, **config}
        made.append(answer("trl", loss, config, value, p, weights=mean.tolist(), sampler=sampler))

    # Rows are of one length, so a mean of the rows' means is the mean over all tokens.
    token = {"loss_type": "grpo", "importance_sampling_level": "token"}
    run("ppo", "sampler_logprobs", 0.8, 1.2, {}, **token)
    run("ppo", "sampler_logprobs", 0.7, 1.5, {"kl_coef": 0.25}, **token, beta=0.25)
    sequence = {"loss_type": "grpo", "importance_sampling_level": "sequence"}
    run("gspo", "sampler_logprobs", 0.8, 1.2, {}, **sequence)
    run("gspo", "near_logprobs", 1 - 1e-4, 1 + 1e-4, {}, **sequence)
    return made


def from_cookbook(case: dict[str, torch.Tensor]) -> list[Any]:
    from tinker_cookbook.preference.train_dpo import compute_dpo_loss

    made: list[Any] = []
    for beta in (0.1, 0.5):
        p = case["logprobs"].clone().requires_grad_()
        sums, reference = p.sum(1), case["reference_logprobs"].sum(1)
        value, metrics = compute_dpo_loss(
            list(sums[::2]), list(sums[1::2]), list(reference[::2]), list(reference[1::2]), beta
        )
        weights = torch.full((ROWS, LENGTH), 2 / ROWS).tolist()
        told = {"accuracy": metrics["accuracy"], "margin": metrics["margin"]}
        made.append(answer("tinker-cookbook", "dpo", {"beta": beta}, value, p, weights=weights, told=told))
    return made


def discounted(case: dict[str, torch.Tensor]) -> Any:
    from tinker_cookbook.rl.metrics import discounted_future_sum_vectorized

    gains = -0.4 * (case["sampler_logprobs"][0] - case["reference_logprobs"][0])
    return {"coefficient": 0.4, "discount": 0.9, "advantages": discounted_future_sum_vectorized(gains, 0.9).tolist()}


def main() -> None:
    plain = make_case(seed=5)
    case = {name: torch.tensor(values, dtype=torch.float64) for name, values in plain.items()}
    references = [*from_tuft(case), *from_trl(case), *from_cookbook(case)]
    document = {"case": plain, "distillation": discounted(case), "references": references}
    OUTPUT.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
