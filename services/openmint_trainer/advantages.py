"""What a reward is worth within its group: the samples of one prompt. Plain numbers, no tensors."""

import math

from openmint.errors import BadRequest

VARIANTS = ("centred", "grpo")


def group_advantages(rewards: list[float], variant: str = "centred") -> list[float]:
    """The advantages of a group's samples; exactly 0 for all when the rewards are all equal.

    centred: r - mean. grpo: (r - mean) / (std + 1e-4), std with n - 1; Shao et al. 2024, arXiv:2402.03300.
    Raises: BadRequest for an unknown variant.
    """
    if variant not in VARIANTS:
        raise BadRequest(f"advantage {variant[:80]!r} is unknown; known are {', '.join(VARIANTS)}", field="advantage")
    if all(reward == rewards[0] for reward in rewards):
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    if variant == "centred":
        return centred
    std = math.sqrt(math.fsum(value * value for value in centred) / (len(rewards) - 1))
    return [value / (std + 1e-4) for value in centred]
