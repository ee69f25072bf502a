"""What a reward is worth within its group: the samples of one prompt. Plain numbers, no tensors."""

import math
from collections.abc import Callable, Sequence

from openmint.errors import BadRequest

STD_FLOOR = 1e-4
"""Added to a group's standard deviation, so that nearly equal rewards do not become huge advantages."""


def _centred(rewards: Sequence[float]) -> list[float]:
    mean = math.fsum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def _normalised(rewards: Sequence[float]) -> list[float]:
    if len(rewards) < 2:
        return _centred(rewards)
    centred = _centred(rewards)
    std = math.sqrt(math.fsum(value * value for value in centred) / (len(rewards) - 1))
    return [value / (std + STD_FLOOR) for value in centred]


def _leave_one_out(rewards: Sequence[float]) -> list[float]:
    if len(rewards) < 2:
        return [0.0 for _ in rewards]
    total = math.fsum(rewards)
    return [reward - (total - reward) / (len(rewards) - 1) for reward in rewards]


VARIANTS: dict[str, Callable[[Sequence[float]], list[float]]] = {
    "centred": _centred,
    "grpo": _normalised,
    "rloo": _leave_one_out,
    "dr_grpo": _centred,
}


def group_advantages(rewards: list[float], variant: str = "centred") -> list[float]:
    """The advantages of a group's samples, in their order; exactly 0 for all when the rewards are all equal.

    centred        r - mean of the group
    grpo           (r - mean) / (std + 1e-4), std with n - 1 in its denominator; Shao et al. 2024,
                   arXiv:2402.03300, section 4.1.2
    rloo           r - mean of the others; Ahmadian et al. 2024, arXiv:2402.14740, eq. 8; 0 for a group of one
    dr_grpo        r - mean: Liu et al. 2025, arXiv:2503.20783. What else Dr. GRPO changes is a matter of weights: the
                   same for every token, whatever the length of its row

    Raises: BadRequest for an unknown variant, an empty group or a reward that is not finite, naming its index.
    """
    if variant not in VARIANTS:
        known = ", ".join(sorted(VARIANTS))
        raise BadRequest(f"advantage {variant[:80]!r} is unknown; known are {known}", field="advantage")
    if not rewards:
        raise BadRequest("a group has no rewards", field="reward")
    for index, reward in enumerate(rewards):
        if not math.isfinite(reward):
            raise BadRequest(f"the reward of sample {index} is {reward}, not a finite number", field="reward")
    if has_no_signal(rewards):
        # The mean of equal numbers may differ from them in its last bit.
        return [0.0] * len(rewards)
    return VARIANTS[variant](rewards)


def has_no_signal(rewards: Sequence[float]) -> bool:
    """True when all rewards are equal: the group teaches nothing, and is counted instead of trained on."""
    return all(reward == rewards[0] for reward in rewards)
