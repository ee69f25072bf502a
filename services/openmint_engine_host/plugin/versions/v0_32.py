# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportAttributeAccessIssue=false
"""vLLM 0.32: where its LoRA insides are, and what is patched in them.

Patched: the worker's LoRA manager reads prepared files and nothing else; on CPU the LoRA kernels are replaced
(`v0_32_kernels`). Dense models and experts on one device; an engine over several devices is refused at start.
"""

import math
import mmap
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from openmint_engine_host.layout import (
    FILE_NAME,
    BadLayout,
    EngineModule,
    LayoutHeader,
    ModuleTable,
    Slice,
    TensorPlace,
    check_fits,
    read_header,
)
from openmint_engine_host.plugin.versions.contract import Capability, Load, Residency, VersionModule
from openmint_engine_host.plugin.versions.v0_32_kernels import bring_experts_to_cpu, repair_linear
from openmint_engine_host.plugin.versions.v0_32_self_test import check_experts, check_linear

ON_ANY_PLATFORM: tuple[Capability, ...] = (
    "exact_residency",
    "prepared_attach",
    "real_removal",
    "batched_attach",
    "self_test",
    "probe",
    "answer_watch",
    "cleanse",
)

PROBE_PROMPT = (1, 2, 3, 4)
"""Any token ids below every vocabulary's size; only whether the answer is finite counts."""


class Vllm032:
    """The insides of vLLM 0.32."""

    def __init__(self) -> None:
        self._is_installed = False
        self._is_repaired = False
        self._layout = ""
        self._table: ModuleTable | None = None

    @property
    def capabilities(self) -> frozenset[Capability]:
        from vllm.platforms import current_platform

        found = set[Capability](ON_ANY_PLATFORM)
        if current_platform.is_cpu():
            found.add("cpu_lora_repair")
        return frozenset(found)

    def install(self) -> None:
        """Patch this process; a second call does nothing."""
        if self._is_installed:
            return
        self._is_installed = True
        _read_prepared_files_only()
        _count_bad_rows_cheaply()
        self.repair_kernels()

    def repair_kernels(self) -> None:
        """Replace the LoRA kernels on CPU and leave everything else of vLLM as it is; a second call does nothing."""
        from vllm.platforms import current_platform

        if self._is_repaired or not current_platform.is_cpu():
            return
        self._is_repaired = True
        repair_linear()
        bring_experts_to_cpu()

    def module_table(self, worker: object) -> ModuleTable:
        manager = _adapters(worker)
        width = cast(Any, worker).vllm_config.parallel_config.tensor_parallel_size
        if width != 1:
            raise BadLayout(f"an engine over {width} devices has no layout yet; start it with one")
        modules = tuple(_engine_module(manager, name, module) for name, module in manager.modules.items())
        dtype = str(manager.lora_config.lora_dtype).removeprefix("torch.")
        table = ModuleTable(dtype, width, manager.lora_config.max_lora_rank, modules)
        self._layout, self._table = table.fingerprint(), table
        return table

    def attach(self, worker: object, load: Load) -> None:
        manager = _adapters(worker)
        if load.adapter_id in manager.list_adapters():
            return
        if len(manager) >= manager.capacity:
            raise BadLayout(f"the engine holds its {manager.capacity} adapters already")
        table = self._table or self.module_table(worker)
        header = read_header(Path(load.path) / FILE_NAME)
        if header.layout != self._layout:
            raise BadLayout(f"{load.path} is of layout {header.layout}, this engine is {self._layout}")
        check_fits(header, table)
        try:
            manager.add_adapter(_map_adapter(Path(load.path) / FILE_NAME, header, load.adapter_id))
            # A free slot is filled now; one that holds another adapter is left to it until a request needs the place.
            if None in manager.lora_index_to_id:
                manager.activate_adapter(load.adapter_id)
        except Exception:
            manager.remove_adapter(load.adapter_id)
            raise

    def remove(self, worker: object, adapter_id: int) -> bool:
        return bool(_adapters(worker).remove_adapter(adapter_id))

    def residency(self, worker: object) -> Residency:
        manager = _adapters(worker)
        return Residency(tuple(manager.list_adapters()), tuple(manager.lora_index_to_id), manager.capacity)

    def self_test(self, worker: object) -> str:
        manager = _adapters(worker)
        if manager.list_adapters():
            return "the self-test needs an engine without adapters"
        try:
            return check_linear(manager) or check_experts(manager)
        finally:
            manager.remove_all_adapters()

    def register_name(self, api: object, load: Load) -> None:
        from vllm.lora.request import LoRARequest

        models = cast(Any, api).openai_serving_models
        models.lora_requests[load.name] = LoRARequest(
            lora_name=load.name, lora_int_id=load.adapter_id, lora_path=load.path
        )

    def forget_name(self, api: object, name: str) -> None:
        models = cast(Any, api).openai_serving_models
        models.lora_requests.pop(name, None)
        models.lora_resolver_lock.pop(name, None)

    async def call_worker(self, api: object, method: str, *arguments: object) -> object:
        answers = await cast(Any, api).engine_client.collective_rpc(method, args=arguments)
        return answers[0]

    async def probe(self, api: object, load: Load | None) -> float:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        request = load and LoRARequest(lora_name=load.name, lora_int_id=load.adapter_id, lora_path=load.path)
        sampling = SamplingParams(max_tokens=1, min_tokens=1, temperature=0.0, logprobs=1)
        answers = [
            answer
            async for answer in cast(Any, api).engine_client.generate(
                {"prompt_token_ids": list(PROBE_PROMPT)},
                sampling,
                f"openmint-probe-{uuid.uuid4()}",
                lora_request=request,
            )
        ]
        tokens = answers[-1].outputs[0]
        if not tokens.token_ids or not tokens.logprobs:
            return math.nan
        return float(tokens.logprobs[0][tokens.token_ids[0]].logprob)

    def watch_answers(self, note: Callable[[str, bool], None]) -> None:
        from vllm.v1.metrics.stats import IterationStats

        stock_update = IterationStats.update_from_output

        def update_from_output(
            self: Any, output: Any, timestamp: float, is_prefilling: bool, request: Any, states: Any, lora_name: Any
        ) -> None:
            if output.num_nans_in_logits:
                note(lora_name or "", False)
            elif is_prefilling and output.new_token_ids:
                note(lora_name or "", True)
            stock_update(self, output, timestamp, is_prefilling, request, states, lora_name)

        cast(Any, IterationStats).update_from_output = update_from_output

    async def cleanse(self, api: object) -> None:
        await self.call_worker(api, "openmint_zero_cache")
        await cast(Any, api).engine_client.reset_prefix_cache()

    def zero_cache(self, worker: object) -> None:
        with torch.inference_mode():
            for cache in cast(Any, worker).model_runner.kv_caches:
                for tensor in cache if isinstance(cache, list | tuple) else (cache,):
                    cast(torch.Tensor, tensor).zero_()


VERSION: VersionModule = Vllm032()


def _adapters(worker: object) -> Any:
    """The manager of a worker's adapters: `_registered_adapters` in host memory, `lora_index_to_id` on the device."""
    return cast(Any, worker).model_runner.lora_manager._adapter_manager


def _engine_module(manager: Any, name: str, module: Any) -> EngineModule:
    from vllm.lora.layers import FusedMoE3DWithLoRA, FusedMoEWithLoRA

    sources = manager.packed_modules.get(name, [name])
    experts = 0
    if isinstance(module, FusedMoEWithLoRA):
        is_gated = module._w13_slices == 2 and not isinstance(module, FusedMoE3DWithLoRA)
        if not is_gated or module.use_ep or module.enable_moe_shared_loras:
            raise BadLayout(f"{name}: only experts with a gate, an up and a down projection of their own have a layout")
        experts = module.local_num_experts
    if len(sources) != module.n_slices:
        raise BadLayout(f"{name} has {module.n_slices} slices made of {len(sources)} modules")
    # Of experts these are views of every slot's weights, the first slot's first: gate, down and up of each expert.
    pairs = zip(module.lora_a_stacked, module.lora_b_stacked, strict=True)
    slices = tuple(
        Slice(source, a.shape[-1], b.shape[-2]) for source, (a, b) in zip(sources, pairs, strict=not experts)
    )
    return EngineModule(name, name in manager.packed_modules, slices, experts)


def _read_prepared_files_only() -> None:
    from vllm.lora import worker_manager
    from vllm.v1.worker import lora_model_runner_mixin

    class PreparedLoRAManager(worker_manager.LRUCacheWorkerLoRAManager):
        """Takes prepared files only: a PEFT folder, a hub name or a vanished path is refused by name."""

        def _load_adapter(self, lora_request: Any) -> Any:
            path = Path(lora_request.lora_path) / FILE_NAME
            return _map_adapter(path, read_header(path), lora_request.lora_int_id)

    # vLLM looks the class up under this name when it builds the model runner.
    mixin: Any = lora_model_runner_mixin
    mixin.LRUCacheWorkerLoRAManager = PreparedLoRAManager


def _count_bad_rows_cheaply() -> None:
    """Count rows of logits that hold a NaN or an infinity by their sums: a tenth of the time of stock's own count.

    Masked tokens are minus infinity and allowed.
    """
    from vllm.v1.worker import gpu_model_runner

    def count_bad_per_row(logits_BV: torch.Tensor) -> torch.Tensor:
        return (~(logits_BV.sum(dim=-1) < math.inf)).to(torch.int32)

    runner: Any = gpu_model_runner
    runner.count_nans_per_row = count_bad_per_row


def _map_adapter(path: Path, header: LayoutHeader, adapter_id: int) -> Any:
    """A LoRAModel whose tensors are views of the file. Its pages are brought into memory here, not in a step."""
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.lora_weights import LoRALayerWeights, PackedLoRALayerWeights

    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
    blob = _as_tensor(mapped, header)

    def view(place: TensorPlace | None) -> torch.Tensor | None:
        if place is None:
            return None
        strides = (place.rows * place.columns, place.columns, 1) if place.experts else (place.columns, 1)
        return blob.as_strided(place.shape, strides, place.offset)

    rank = header.rank
    weights: dict[str, Any] = {}
    for module in header.modules:
        a = [view(place) for place in module.a]
        b = [view(place) for place in module.b]
        if module.packed:
            count = len(a)
            weights[module.name] = PackedLoRALayerWeights(
                module.name, rank, [rank] * count, a, b, scaling=[1.0] * count
            )
        else:
            weights[module.name] = LoRALayerWeights(module.name, rank, rank, cast(Any, a[0]), cast(Any, b[0]), 1.0)
    return LoRAModel(adapter_id, rank, weights)


def _as_tensor(mapped: mmap.mmap, header: LayoutHeader) -> torch.Tensor:
    dtype = cast(torch.dtype, getattr(torch, header.dtype))
    with warnings.catch_warnings():
        # torch warns that the memory is read-only; nothing writes to it, since the scale is folded in already.
        warnings.simplefilter("ignore", UserWarning)
        count = header.blob_bytes // dtype.itemsize
        return torch.frombuffer(mapped, dtype=dtype, offset=header.blob_offset, count=count)
