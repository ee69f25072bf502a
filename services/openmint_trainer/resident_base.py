"""The one base model that a trainer process keeps in memory, with adapter banks on its linears."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from openmint_trainer import attention
from openmint_trainer.banks import ModuleShape, SlotBanks
from openmint_trainer.segmented_linear import Route, SegmentedLinear
from openmint_trainer.targets import find_targets

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
DtypeName = Literal["auto", "bfloat16", "float32"]


def choose_dtype(name: DtypeName, device: str = "cpu") -> torch.dtype:
    """The dtype that the base is kept in.

    `auto` is bfloat16 where the processor multiplies it in hardware. A CPU that only emulates it measured 9 times
    slower in a product and 36 times in its gradient than in float32.
    """
    if name != "auto":
        return DTYPES[name]
    has_bfloat16 = device != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_bfloat16 else torch.float32


@dataclass(slots=True)
class ResidentBase:
    """A frozen base whose adapted linears look up the owner of each row in `route`."""

    name: str
    digest: str
    decoder: nn.Module
    embeddings: nn.Module
    head_VH: torch.Tensor
    modules: dict[str, ModuleShape]
    dtype: torch.dtype
    device: torch.device
    route: Route

    def make_banks(self, max_slots: int, max_bytes: int) -> SlotBanks:
        """Empty banks for this base."""
        return SlotBanks(self.modules, max_slots, max_bytes, self.dtype, self.device)


def load_base(folder: Path, name: str, digest: str, dtype: DtypeName, device: str = "cpu") -> ResidentBase:
    """Read a base model's folder and make it trainable.

    Raises: ValueError when its logits are made in a way that the losses here do not know.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=choose_dtype(dtype, device),
        attn_implementation=attention.register(),
        local_files_only=True,
    )
    nn.Module.to(model, torch.device(device))
    return adopt_base(model, name, digest)


def adopt_base(model: PreTrainedModel, name: str, digest: str) -> ResidentBase:
    """Make a model that is already in memory trainable, in place. Its attention must be the packed one."""
    for field in ("final_logit_softcapping", "logits_scaling"):
        if getattr(model.config, field, None):
            raise ValueError(f"base {name} sets {field}, which the losses do not know")
    model.set_attn_implementation(attention.register())
    model.requires_grad_(False)
    model.eval()
    route = Route()
    targets = find_targets(model)
    for path, linear in targets.items():
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, SegmentedLinear(linear, path, route))
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or getattr(head, "bias", None) is not None:
        raise ValueError(f"base {name} has an output head that is not one plain matrix, which the losses do not know")
    weight = head.weight
    return ResidentBase(
        name=name,
        digest=digest,
        decoder=model.get_decoder(),
        embeddings=model.get_input_embeddings(),
        head_VH=weight.detach(),
        modules={path: ModuleShape(linear.out_features, linear.in_features) for path, linear in targets.items()},
        dtype=weight.dtype,
        device=weight.device,
        route=route,
    )


def use_one_thread() -> None:
    """Hold this process to one intra-op thread.

    On a shared machine every small kernel would otherwise wait for a descheduled peer: measured 40 times slower.
    """
    torch.set_num_threads(1)
