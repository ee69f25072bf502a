"""A reward's worth within its group."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmint.errors import BadRequest
from openmint_trainer.advantages import VARIANTS, group_advantages, has_no_signal

REWARDS = [0.2, 1.0, 0.0, 0.2, 1.0]


@pytest.mark.parametrize("variant", ["centred", "dr_grpo"])
def test_centred_rewards_lie_around_the_mean(variant: str) -> None:
    assert group_advantages(REWARDS, variant) == pytest.approx([r - 0.48 for r in REWARDS])


def test_normalised_rewards_are_in_standard_deviations() -> None:
    std = statistics.stdev(REWARDS) + 1e-4
    assert group_advantages(REWARDS, "grpo") == pytest.approx([(r - 0.48) / std for r in REWARDS])


def test_leave_one_out_compares_each_sample_with_the_mean_of_the_others() -> None:
    expected = [r - statistics.mean(REWARDS[:i] + REWARDS[i + 1 :]) for i, r in enumerate(REWARDS)]
    assert group_advantages(REWARDS, "rloo") == pytest.approx(expected)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("rewards", [[0.1] * 3, [0.7] * 6, [0.3]])
def test_a_group_of_equal_rewards_teaches_exactly_nothing(variant: str, rewards: list[float]) -> None:
    assert has_no_signal(rewards)
    assert group_advantages(rewards, variant) == [0.0] * len(rewards)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20))
def test_a_groups_advantages_add_up_to_nothing_and_keep_the_order_of_the_rewards(rewards: list[float]) -> None:
    for variant in VARIANTS:
        advantages = group_advantages(rewards, variant)
        assert math.fsum(advantages) == pytest.approx(0.0, abs=1e-6)
        best = rewards.index(max(rewards))
        assert advantages[best] == max(advantages)


def test_what_is_no_reward_is_named() -> None:
    with pytest.raises(BadRequest, match="the reward of sample 1 is nan"):
        group_advantages([0.0, math.nan])
    with pytest.raises(BadRequest, match="no rewards"):
        group_advantages([])
    with pytest.raises(BadRequest, match=r"'z' is unknown; known are centred, dr_grpo, grpo, rloo"):
        group_advantages([1.0], "z")
