"""The one base model that a trainer process keeps in memory, with adapters on its linears and experts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from openmint_trainer import attention
from openmint_trainer.banks import ModuleShape, SlotBanks
from openmint_trainer.packing import padded
from openmint_trainer.recomputation import recompute_layers
from openmint_trainer.segmented_experts import SegmentedExperts
from openmint_trainer.segmented_linear import Route, Segment, SegmentedLinear
from openmint_trainer.self_test import MAX_ERROR, expected_states, largest_error
from openmint_trainer.targets import find_targets

log = structlog.get_logger()

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
    """A frozen base whose adapted modules look up the owner of each row in `route`."""

    name: str
    digest: str
    decoder: nn.Module
    embeddings: nn.Module
    head_VH: torch.Tensor
    modules: dict[str, ModuleShape]
    dtype: torch.dtype
    device: torch.device
    route: Route
    packs_rows: bool
    """Whether many rows may go through the decoder as one. Where attention or a state would reach from one row into the
    next, each row goes through by itself: the same results, with less of a product to fill."""

    def make_banks(self, max_slots: int, max_bytes: int) -> SlotBanks:
        """Empty banks for this base."""
        return SlotBanks(self.modules, max_slots, max_bytes, self.dtype, self.device)

    def hidden_states(self, rows: Sequence[torch.Tensor], segments: Sequence[Segment] = ()) -> torch.Tensor:
        """The last hidden states of rows, one below the other, each row seeing itself alone.

        Shapes: a row is [L] token ids; segments count in tokens over all rows and split none; the answer is
        [T, H].
        """
        try:
            if self.packs_rows:
                self.route.segments = segments
                return self._decode(rows)
            states: list[torch.Tensor] = []
            start = 0
            for row in rows:
                owner = next((s for s in segments if s.start <= start < s.end), None)
                self.route.segments = (Segment(owner.slot, 0, len(row)),) if owner is not None else ()
                states.append(self._decode([row]))
                start += len(row)
            return torch.cat(states)
        finally:
            self.route.segments = ()

    def _decode(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        lengths = [len(row) for row in rows]
        total = sum(lengths)
        extra: dict[str, object] = {}
        if self.packs_rows:
            filler = padded(total) - total
            if filler:
                lengths.append(filler)
                rows = [*rows, torch.zeros(filler, dtype=torch.int64)]
            extra["sequence_lengths"] = lengths
        positions_T = torch.cat([torch.arange(length) for length in lengths])
        # With every parameter frozen, the embeddings are the leaf that makes autograd build a graph at all.
        embedded_1TH = self.embeddings(torch.cat(list(rows))[None].to(self.device)).detach().requires_grad_()
        output = self.decoder(
            inputs_embeds=embedded_1TH,
            position_ids=positions_T[None].to(self.device),
            use_cache=False,
            **extra,
        )
        return output.last_hidden_state[0, :total]


def load_base(
    folder: Path, name: str, digest: str, dtype: DtypeName, device: str = "cpu", recompute: bool = False
) -> ResidentBase:
    """Read a base model's folder and make it trainable.

    Raises: ValueError when it computes in a way that the trainer does not know.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=choose_dtype(dtype, device), local_files_only=True
    )
    nn.Module.to(model, torch.device(device))
    return adopt_base(model, name, digest, recompute)


def adopt_base(model: PreTrainedModel, name: str, digest: str, recompute: bool = False) -> ResidentBase:
    """Make a model that is already in memory trainable, in place.

    `recompute` keeps only the inputs of decoder layers for the way back.
    Raises: ValueError when it computes in a way that the trainer does not know.
    """
    for field in ("final_logit_softcapping", "logits_scaling"):
        if getattr(model.config, field, None):
            raise ValueError(f"base {name} sets {field}, which the losses do not know")
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or getattr(head, "bias", None) is not None:
        raise ValueError(f"base {name} has an output head that is not one plain matrix, which the losses do not know")
    weight = head.weight
    model.requires_grad_(False)
    model.eval()
    own_attention = model.config._attn_implementation or "eager"
    base = ResidentBase(
        name=name,
        digest=digest,
        decoder=model.get_decoder(),
        embeddings=model.get_input_embeddings(),
        head_VH=weight.detach(),
        modules={},
        dtype=weight.dtype,
        device=weight.device,
        route=Route(),
        packs_rows=False,
    )
    expected = expected_states(base.hidden_states, weight.shape[0])
    base.modules = _make_adaptable(model, base.route)
    limit = MAX_ERROR[base.dtype]
    base.packs_rows = True
    model.set_attn_implementation(attention.register())
    error = _packed_error(base, expected)
    if not error <= limit:
        log.info("base.runs_row_by_row", base=name, error=error)
        base.packs_rows = False
        model.set_attn_implementation(own_attention)
        error = largest_error(base.hidden_states, weight.shape[0], expected)
        if not error <= limit:
            raise ValueError(f"base {name} computes differently when it is made trainable: relative error {error:.2g}")
    if recompute:
        recompute_layers(model, base.route)
    return base


def _make_adaptable(model: nn.Module, route: Route) -> dict[str, ModuleShape]:
    targets = find_targets(model)
    shapes = targets.shapes
    for path, linear in targets.linears.items():
        _replace(model, path, SegmentedLinear(linear, path, route))
    for path, experts in targets.experts.items():
        _replace(model, path, SegmentedExperts(experts, path, route))
    return shapes


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _packed_error(base: ResidentBase, expected: Sequence[torch.Tensor]) -> float:
    try:
        return largest_error(base.hidden_states, base.head_VH.shape[0], expected)
    except Exception as error:  # A model's own code meets an attention that it was not written for: anything may break.
        log.debug("base.cannot_pack", base=base.name, error=repr(error))
        return float("inf")


def use_one_thread() -> None:
    """Hold this process to one intra-op thread.

    On a shared machine every small kernel would otherwise wait for a descheduled peer: measured 40 times slower.
    """
    torch.set_num_threads(1)
