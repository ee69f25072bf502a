"""The CPU LoRA repair on vLLM's own wrapper class, beside what stock kernels do. No engine is started."""

import pytest
import torch

pytestmark = pytest.mark.slow  # importing vLLM's LoRA code takes seconds

IN, OUT, RANK, SLOTS = 8, 6, 4, 2
BASE, FIRST, LAST = 0, 1, 2
"""Adapter ids of rows: 0 is the base; the adapter in the last slot is the one that stock kernels leak."""


def outputs(adapter_of_row: list[int]) -> torch.Tensor:
    from vllm.lora.layers.utils import LoRAMapping
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    generator = torch.Generator().manual_seed(0)
    a = torch.randn(SLOTS, 1, RANK, IN, generator=generator)
    b = torch.randn(SLOTS, 1, OUT, RANK, generator=generator)
    x = torch.ones(len(adapter_of_row), IN)
    y = torch.zeros(len(adapter_of_row), OUT)
    wrapper = PunicaWrapperCPU(64, 8, "cpu")
    rows = tuple(adapter_of_row)
    wrapper.update_metadata(LoRAMapping(rows, rows, is_prefill=True), [FIRST, LAST], SLOTS + 1, 100)
    wrapper.add_lora_linear(y, x, (a,), (b,), 1.0, (OUT,))
    return y


@pytest.fixture
def repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    from openmint_engine_host.plugin.versions.v0_32_kernels import repair_linear

    for name in ("update_metadata", "add_lora_linear"):
        monkeypatch.setattr(PunicaWrapperCPU, name, getattr(PunicaWrapperCPU, name))
    repair_linear()


def test_stock_kernels_give_base_rows_the_last_adapter():
    """When this fails, vLLM has mended its kernels and the repair can go."""
    y = outputs([BASE, FIRST])
    assert y[0].abs().max() > 0


@pytest.mark.usefixtures("repaired")
def test_repaired_kernels_leave_base_rows_alone():
    y = outputs([BASE, FIRST, BASE, LAST])
    assert not y[0].any()
    assert not y[2].any()


def test_repaired_and_stock_kernels_agree_on_rows_that_have_an_adapter(request: pytest.FixtureRequest):
    rows = [FIRST, LAST, LAST, FIRST, FIRST]
    stock = outputs(rows)
    request.getfixturevalue("repaired")
    torch.testing.assert_close(outputs(rows), stock, rtol=1e-4, atol=1e-5)


def test_asked_for_repair_alone_the_plugin_leaves_the_rest_of_vllm_as_it_is(monkeypatch: pytest.MonkeyPatch):
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
    from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts
    from vllm.v1.worker import lora_model_runner_mixin

    from openmint_engine_host.plugin import ONLY_REPAIR, register, versions
    from openmint_engine_host.plugin.versions.v0_32 import Vllm032

    methods = (
        (PunicaWrapperCPU, "update_metadata"),
        (PunicaWrapperCPU, "add_lora_linear"),
        (TritonExperts, "apply"),
    )
    stock = {(kind, name): getattr(kind, name) for kind, name in methods}
    for (kind, name), method in stock.items():
        monkeypatch.setattr(kind, name, method)
    monkeypatch.delenv("OPENMINT_ENGINE", raising=False)
    monkeypatch.setattr(versions, "open_version", Vllm032)
    monkeypatch.setenv(ONLY_REPAIR, "0")
    register()
    assert all(getattr(kind, name) is method for (kind, name), method in stock.items())
    monkeypatch.setenv(ONLY_REPAIR, "1")
    register()
    assert all(getattr(kind, name) is not method for (kind, name), method in stock.items())
    assert lora_model_runner_mixin.LRUCacheWorkerLoRAManager is LRUCacheWorkerLoRAManager
