"""The CPU kernels against the formula, row by row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openmint_engine_host.plugin.cpu_lora import add_lora, group_rows

IN, RANK, SLICES, SLOTS = 6, 3, (5, 2, 2), 4


def stacked(seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    a = [torch.randn(SLOTS, 1, RANK, IN, generator=generator) for _ in SLICES]
    b = [torch.randn(SLOTS, 1, size, RANK, generator=generator) for size in SLICES]
    return a, b


def expected(y: torch.Tensor, x: torch.Tensor, slots: list[int], scale: float, seed: int) -> torch.Tensor:
    a, b = stacked(seed)
    result = y.clone()
    for row, slot in enumerate(slots):
        if slot >= 0:
            delta = torch.cat([x[row] @ a_i[slot, 0].T @ b_i[slot, 0].T for a_i, b_i in zip(a, b, strict=True)])
            result[row] += scale * delta
    return result


@given(slots=st.lists(st.integers(-1, SLOTS - 1), max_size=40), scale=st.sampled_from([1.0, 0.5]))
@settings(max_examples=60, deadline=None)
def test_every_row_gets_its_own_adapter_and_rows_of_the_base_stay_as_they_are(slots: list[int], scale: float):
    generator = torch.Generator().manual_seed(len(slots))
    x = torch.randn(len(slots), IN, generator=generator)
    y = torch.randn(len(slots), sum(SLICES), generator=generator)
    wanted = expected(y, x, slots, scale, seed=7)
    untouched = y.clone()
    a, b = stacked(7)
    add_lora(y, x, a, b, scale, SLICES, group_rows(slots))
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-4)
    for row, slot in enumerate(slots):
        if slot < 0:
            assert torch.equal(y[row], untouched[row])


def test_many_small_groups_are_gathered_and_few_large_ones_are_not():
    assert group_rows([0, 1, 2, 3]).gather_rows_N is not None
    assert group_rows([0] * 64 + [1] * 64).gather_rows_N is None
    assert group_rows([2]).gather_rows_N is None


def test_a_batch_of_the_base_has_no_groups():
    grouping = group_rows([-1, -1, -1])
    assert grouping.groups == ()


@pytest.mark.parametrize("slots", [[0, 0, 1, 0], [1, -1, 1]])
def test_scattered_rows_of_one_adapter_are_one_group(slots: list[int]):
    assert len(group_rows(slots).groups) == len(set(slots) - {-1})
