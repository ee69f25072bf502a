import pytest
import torch

from openmint_engine_host.plugin.slots import fill_slot


@pytest.mark.parametrize("given", [(3, 4, 6), (3, 2, 6), (3, 4, 5), (3, 1, 1)])
def test_a_slot_holds_the_adapter_given_last_and_nothing_of_the_one_before(given: tuple[int, int, int]):
    slot = torch.full((3, 4, 6), 7.0)
    weights = torch.rand(given)
    fill_slot(slot, weights)
    assert torch.equal(slot[:, : given[1], : given[2]], weights)
    assert float(slot.sum()) == pytest.approx(float(weights.sum()), rel=1e-5)
