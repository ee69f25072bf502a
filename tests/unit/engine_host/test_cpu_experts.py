"""The CPU kernel of experts against the formula, token by token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from openmint_engine_host.plugin.cpu_experts import ExpertLora, LoraPair, route, run_experts

HIDDEN, INNER, RANK, EXPERTS, TOP_K, SLOTS = 6, 5, 3, 4, 2, 3


def random_pair(out_size: int, in_size: int, generator: torch.Generator) -> LoraPair:
    a = torch.randn(SLOTS, EXPERTS, RANK, in_size, generator=generator)
    return LoraPair(a, torch.randn(SLOTS, EXPERTS, out_size, RANK, generator=generator))


class Layer:
    """One layer of experts with adapters in every slot, and a batch's routing."""

    def __init__(self, tokens: int, seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.gate_up = torch.randn(EXPERTS, 2 * INNER, HIDDEN, generator=self.random)
        self.down = torch.randn(EXPERTS, HIDDEN, INNER, generator=self.random)
        self.lora = ExpertLora(
            random_pair(INNER, HIDDEN, self.random),
            random_pair(INNER, HIDDEN, self.random),
            random_pair(HIDDEN, INNER, self.random),
        )
        self.x = torch.randn(tokens, HIDDEN, generator=self.random)
        chosen = [torch.randperm(EXPERTS, generator=self.random)[:TOP_K] for _ in range(tokens)]
        self.experts = torch.stack(chosen) if chosen else torch.empty(0, TOP_K, dtype=torch.int64)
        self.weights = torch.rand(tokens, TOP_K, generator=self.random)

    def run(self, slots: list[int], *, with_lora: bool = True) -> torch.Tensor:
        return run_experts(
            self.x,
            self.gate_up,
            self.down,
            self.weights,
            self.experts,
            self.lora if with_lora else None,
            torch.tensor(slots, dtype=torch.int64),
        )

    def expected(self, slots: list[int]) -> torch.Tensor:
        result = torch.zeros(len(slots), HIDDEN)
        for token, slot in enumerate(slots):
            for weight, expert in zip(self.weights[token], self.experts[token].tolist(), strict=True):
                gate, up = self.gate_up[expert].chunk(2)
                x = self.x[token]
                pairs = (self.lora.gate, self.lora.up, self.lora.down) if slot >= 0 else (None, None, None)
                inner = functional.silu(projected(x, gate, pairs[0], slot, expert))
                inner = inner * projected(x, up, pairs[1], slot, expert)
                result[token] += weight * projected(inner, self.down[expert], pairs[2], slot, expert)
        return result


def projected(x: torch.Tensor, weight: torch.Tensor, pair: LoraPair | None, slot: int, expert: int) -> torch.Tensor:
    if pair is None:
        return weight @ x
    return weight @ x + pair.b_SEOR[slot, expert] @ (pair.a_SERI[slot, expert] @ x)


@given(slots=st.lists(st.integers(-1, SLOTS - 1), max_size=24))
@settings(max_examples=60, deadline=None)
def test_every_token_gets_its_own_adapter_on_every_expert_it_goes_to(slots: list[int]):
    layer = Layer(len(slots), seed=len(slots))
    torch.testing.assert_close(layer.run(slots), layer.expected(slots), rtol=1e-4, atol=1e-3)


def test_tokens_of_the_base_are_the_same_beside_any_adapter():
    layer = Layer(8)
    of_base = [0, 2, 5]
    slots = [-1 if token in of_base else token % SLOTS for token in range(8)]
    alone = layer.run([-1] * 8, with_lora=False)
    assert torch.equal(layer.run(slots)[of_base], alone[of_base])
    assert torch.equal(layer.run([-1] * 8), alone)


def test_bfloat16_weights_are_summed_in_float32():
    layer = Layer(16)
    slots = [token % SLOTS for token in range(16)]
    wanted = layer.expected(slots)
    layer.x, layer.gate_up, layer.down = (t.bfloat16() for t in (layer.x, layer.gate_up, layer.down))
    pairs = (layer.lora.gate, layer.lora.up, layer.lora.down)
    layer.lora = ExpertLora(*(LoraPair(pair.a_SERI.bfloat16(), pair.b_SEOR.bfloat16()) for pair in pairs))
    found = layer.run(slots)
    assert found.dtype == torch.float32
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 0.05


@pytest.mark.parametrize("slots", [[0, 1, -1, 1, 0], [2, 2, 2, 2, 2]])
def test_sorted_rows_of_an_expert_and_of_an_adapter_on_it_lie_together(slots: list[int]):
    layer = Layer(5)
    routing = route(layer.weights, layer.experts, torch.tensor(slots), SLOTS)
    assert [run.end for run in routing.experts[:-1]] == [run.start for run in routing.experts[1:]]
    assert len({run.expert for run in routing.experts}) == len(routing.experts)
    for run in routing.adapters:
        tokens = routing.token_N[run.start : run.end].tolist()
        assert {slots[token] for token in tokens} == {run.slot}
        assert all(run.expert in layer.experts[token] for token in tokens)
