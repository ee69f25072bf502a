"""Adapter banks: the LoRA weights, gradients and moments of every policy in training, by slot.

A bank holds one rank class. Each slot is one row of a few wide vectors, so that clipping, the finite check, Adam and
saving are a handful of operations whatever the number of modules; a module sees its part of the row as matrices. A row
is made when a policy comes and freed when it goes.
Nothing here knows about models, losses or data.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from openmint.errors import BadRequest, Overloaded

RANK_CLASSES = (8, 16, 32, 64, 128, 256)
"""A policy's rank is padded up to one of these. Padding 8 to 64 would cost 8 times the adapter's work."""

ALIGNMENT = 64
"""Elements. Every matrix starts on such a boundary, so that a policy computes the same bits in every slot."""


Kind = Literal["masters", "gradients", "moment1", "moment2"]


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """The shape of an adapted weight: a linear's, or with `experts` above 0 of as many experts in one parameter."""

    out_features: int
    in_features: int
    experts: int = 0

    @property
    def copies(self) -> int:
        """How many pairs of A and B sit on it."""
        return self.experts or 1


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """What of the base a policy adapts, and how strongly."""

    rank: int
    alpha: float
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        """What B(Ax) is multiplied with; kept outside the weights."""
        return self.alpha / self.rank


@dataclass(frozen=True, slots=True)
class AdapterViews:
    """One pair's matrices in a slot, without the padding of the rank class.

    a and grad_a are [rank, in], b and grad_b [out, rank]. a and b are the compute copies in the base's dtype.
    """

    a: torch.Tensor
    b: torch.Tensor
    grad_a: torch.Tensor
    grad_b: torch.Tensor


@dataclass(slots=True)
class Slot:
    """A place in a bank, held by one policy."""

    rank_class: int
    index: int
    shape: AdapterShape
    paths: tuple[str, ...]
    views: dict[str, tuple[AdapterViews, ...]] = field(default_factory=dict)
    """By module: one pair, or one for each expert."""


@dataclass(frozen=True, slots=True)
class SlotRow:
    """Everything of one slot, each [width]; compute is in the base's dtype, the others are float32."""

    masters: torch.Tensor
    gradients: torch.Tensor
    moment1: torch.Tensor
    moment2: torch.Tensor
    compute: torch.Tensor


class RankBank:
    """All slots of one rank class: where each module's matrices lie in a row, and the rows."""

    def __init__(self, modules: Mapping[str, ModuleShape], rank: int, dtype: torch.dtype, device: torch.device):
        self.rank = rank
        self._modules = dict(modules)
        self._dtype = dtype
        self._device = device
        self._offsets: dict[str, tuple[int, int]] = {}
        end = 0
        for path, shape in self._modules.items():
            a_at = end
            b_at = _aligned(a_at + shape.copies * rank * shape.in_features)
            end = _aligned(b_at + shape.copies * shape.out_features * rank)
            self._offsets[path] = (a_at, b_at)
        self.width = end
        self._rows: dict[int, SlotRow] = {}

    @property
    def slot_bytes(self) -> int:
        """What one slot takes."""
        compute_bytes = 0 if self._dtype == torch.float32 else self._dtype.itemsize
        return self.width * (4 * torch.float32.itemsize + compute_bytes)

    def reserve(self, shape: AdapterShape, paths: tuple[str, ...]) -> Slot:
        """Take a free slot, all zeros."""
        index = next(i for i in range(len(self._rows) + 1) if i not in self._rows)
        masters, gradients, moment1, moment2 = (
            torch.zeros(self.width, dtype=torch.float32, device=self._device) for _ in range(4)
        )
        # A float32 base needs no second copy: the masters are what it computes with.
        compute = masters if self._dtype == torch.float32 else torch.zeros_like(masters, dtype=self._dtype)
        row = SlotRow(masters, gradients, moment1, moment2, compute)
        slot = Slot(self.rank, index, shape, paths)
        for path in paths:
            matrices = (*self._split(compute, path, shape.rank), *self._split(gradients, path, shape.rank))
            if self._modules[path].experts:
                pairs = zip(*(matrix.unbind() for matrix in matrices), strict=True)
                slot.views[path] = tuple(AdapterViews(a, b, grad_a, grad_b) for a, b, grad_a, grad_b in pairs)
            else:
                slot.views[path] = (AdapterViews(*matrices),)
        self._rows[index] = row
        return slot

    def release(self, slot: Slot) -> None:
        """Give a slot and its memory back; its views must not be used any more."""
        del self._rows[slot.index]
        slot.views.clear()

    def row(self, slot: Slot) -> SlotRow:
        """A slot's whole row, to be changed in place."""
        return self._rows[slot.index]

    def matrices(self, kind: Kind, slot: Slot, path: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A [rank, in] and B [out, rank] of one module, of the given kind; of experts [E, rank, in], [E, out, rank]."""
        return self._split(getattr(self._rows[slot.index], kind), path, slot.shape.rank)

    def padded_matrices(self, kind: Kind, slot: Slot, path: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The same with the padding of the rank class instead of the rank."""
        return self._split(getattr(self._rows[slot.index], kind), path, self.rank)

    def refresh(self, slot: Slot) -> None:
        """Bring the compute copy up to date with the masters."""
        row = self._rows[slot.index]
        if row.compute is not row.masters:
            row.compute.copy_(row.masters)

    def _split(self, row: torch.Tensor, path: str, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = self._modules[path]
        a_at, b_at = self._offsets[path]
        outer = (shape.experts,) if shape.experts else ()
        a = row[a_at : a_at + shape.copies * self.rank * shape.in_features].view(*outer, self.rank, shape.in_features)
        b = row[b_at : b_at + shape.copies * shape.out_features * self.rank].view(*outer, shape.out_features, self.rank)
        return a[..., :rank, :], b[..., :rank]


class SlotBanks:
    """The banks of all rank classes of one base: at most `max_slots` policies and `max_bytes` at a time."""

    def __init__(
        self,
        modules: Mapping[str, ModuleShape],
        max_slots: int,
        max_bytes: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
        rank_classes: tuple[int, ...] = RANK_CLASSES,
    ) -> None:
        self._modules = dict(modules)
        self._max_slots = max_slots
        self._max_bytes = max_bytes
        self._dtype = dtype
        self._device = device or torch.device("cpu")
        self._rank_classes = rank_classes
        self._banks: dict[int, RankBank] = {}
        self.taken = 0
        self.taken_bytes = 0

    def reserve(self, shape: AdapterShape) -> Slot:
        """A slot for a new policy, all zeros.

        Raises: Overloaded when every slot is held or memory is, BadRequest when the rank can never be had here.
        """
        if self.taken >= self._max_slots:
            raise Overloaded(f"all {self._max_slots} adapter slots are in use")
        rank_class = next((c for c in self._rank_classes if c >= shape.rank), None)
        if rank_class is None:
            raise BadRequest(f"rank {shape.rank} is above {self._rank_classes[-1]}", field="adapter.rank")
        if rank_class not in self._banks:
            self._banks[rank_class] = RankBank(self._modules, rank_class, self._dtype, self._device)
        paths = tuple(path for path in self._modules if path.rpartition(".")[2] in shape.targets)
        bank = self._banks[rank_class]
        if bank.slot_bytes > self._max_bytes:
            raise BadRequest(
                f"rank {shape.rank} needs {bank.slot_bytes} bytes, more than this trainer's {self._max_bytes}",
                field="adapter.rank",
            )
        if self.taken_bytes + bank.slot_bytes > self._max_bytes:
            raise Overloaded(f"policies in training hold {self.taken_bytes} of {self._max_bytes} bytes")
        slot = bank.reserve(shape, paths)
        self.taken += 1
        self.taken_bytes += bank.slot_bytes
        return slot

    def release(self, slot: Slot) -> None:
        """Give a slot back."""
        bank = self._banks[slot.rank_class]
        bank.release(slot)
        self.taken -= 1
        self.taken_bytes -= bank.slot_bytes

    def bank_of(self, slot: Slot) -> RankBank:
        """The bank that the slot is in."""
        return self._banks[slot.rank_class]

    def initialise(self, slot: Slot, seed: int) -> None:
        """Start a fresh adapter: A uniform in ±1/sqrt(in) as stock PEFT does, B zero.

        Every module draws from its own stream, so the values depend on neither the slot nor the other targets.
        """
        bank = self.bank_of(slot)
        for path in slot.paths:
            a, b = bank.matrices("masters", slot, path)
            digest = hashlib.sha256(f"{seed}:{path}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            bound = a.shape[-1] ** -0.5
            a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=generator))
            b.zero_()
        bank.refresh(slot)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
