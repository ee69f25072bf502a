"""Adapter banks: the LoRA weights, gradients and moments of every policy in training, by slot.

A bank holds one rank class. Each slot is one row of a few wide tensors, so that clipping, the finite check, Adam and
saving are a handful of operations whatever the number of modules; a module sees its part of the row as matrices.
Nothing here knows about models, losses or data.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from openmint.errors import BadRequest, Overloaded

RANK_CLASSES = (8, 16, 32, 64, 128, 256)
"""A policy's rank is padded up to one of these. Padding 8 to 64 would cost 8 times the adapter's work."""

ALIGNMENT = 64
"""Elements. Every matrix starts on such a boundary, so that a policy computes the same bits in every slot."""


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """The shape of an adapted linear's weight."""

    out_features: int
    in_features: int


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
    """One module's matrices in a slot, without the padding of the rank class.

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
    views: dict[str, AdapterViews] = field(default_factory=dict)


class RankBank:
    """All slots of one rank class. Grows by doubling, shrinks never."""

    KINDS = ("masters", "gradients", "moment1", "moment2")

    def __init__(self, modules: Mapping[str, ModuleShape], rank: int, dtype: torch.dtype, device: torch.device):
        self.rank = rank
        self._modules = dict(modules)
        self._dtype = dtype
        self._device = device
        self._offsets: dict[str, tuple[int, int]] = {}
        end = 0
        for path, shape in self._modules.items():
            a_at = end
            b_at = _aligned(a_at + rank * shape.in_features)
            end = _aligned(b_at + shape.out_features * rank)
            self._offsets[path] = (a_at, b_at)
        self.width = end
        self._tensors = {kind: self._empty(0, torch.float32) for kind in self.KINDS}
        self._compute = self._empty(0, dtype)
        self._taken: dict[int, Slot] = {}

    def _empty(self, slots: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(slots, self.width, dtype=dtype, device=self._device)

    @property
    def capacity(self) -> int:
        """Slots that memory is held for."""
        return self._compute.shape[0]

    def reserve(self, shape: AdapterShape, paths: tuple[str, ...]) -> Slot:
        """Take a free slot, all zeros."""
        free = next((i for i in range(self.capacity) if i not in self._taken), None)
        if free is None:
            free = self.capacity
            self._grow(max(1, 2 * self.capacity))
        slot = Slot(self.rank, free, shape, paths)
        self._taken[free] = slot
        for tensor in (*self._tensors.values(), self._compute):
            tensor[free].zero_()
        self._bind(slot)
        return slot

    def release(self, slot: Slot) -> None:
        """Give a slot back; its views must not be used any more."""
        del self._taken[slot.index]
        slot.views.clear()

    def _grow(self, capacity: int) -> None:
        for kind, old in self._tensors.items():
            self._tensors[kind] = self._empty(capacity, torch.float32)
            self._tensors[kind][: old.shape[0]] = old
        # A float32 base needs no second copy: the masters are what it computes with.
        if self._dtype == torch.float32:
            self._compute = self._tensors["masters"]
        else:
            old = self._compute
            self._compute = self._empty(capacity, self._dtype)
            self._compute[: old.shape[0]] = old
        for slot in self._taken.values():
            self._bind(slot)

    def _bind(self, slot: Slot) -> None:
        for path in slot.paths:
            a, b = self._matrices(self._compute[slot.index], path, slot.shape.rank)
            grad_a, grad_b = self._matrices(self._tensors["gradients"][slot.index], path, slot.shape.rank)
            slot.views[path] = AdapterViews(a, b, grad_a, grad_b)

    def _matrices(self, row: torch.Tensor, path: str, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = self._modules[path]
        a_at, b_at = self._offsets[path]
        a = row[a_at : a_at + self.rank * shape.in_features].view(self.rank, shape.in_features)
        b = row[b_at : b_at + shape.out_features * self.rank].view(shape.out_features, self.rank)
        return a[:rank], b[:, :rank]

    def row(self, kind: str, slot: Slot) -> torch.Tensor:
        """A slot's whole row [width] of masters, gradients, moment1 or moment2, float32, to be changed in place."""
        return self._tensors[kind][slot.index]

    def matrices(self, kind: str, slot: Slot, path: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A [rank, in] and B [out, rank] of one module, of the given kind, float32."""
        return self._matrices(self._tensors[kind][slot.index], path, slot.shape.rank)

    def stacked(self, path: str) -> tuple[torch.Tensor, torch.Tensor]:
        """All slots' compute copies of one module, padded: A [slots, R, in] and B [slots, out, R]."""
        shape = self._modules[path]
        a_at, b_at = self._offsets[path]
        a = self._compute[:, a_at : a_at + self.rank * shape.in_features]
        b = self._compute[:, b_at : b_at + shape.out_features * self.rank]
        return a.unflatten(1, (self.rank, shape.in_features)), b.unflatten(1, (shape.out_features, self.rank))

    def refresh(self, slot: Slot) -> None:
        """Bring the compute copy up to date with the masters."""
        if self._compute is not self._tensors["masters"]:
            self._compute[slot.index].copy_(self._tensors["masters"][slot.index])


class SlotBanks:
    """The banks of all rank classes of one base; at most `max_slots` policies at a time."""

    def __init__(
        self,
        modules: Mapping[str, ModuleShape],
        max_slots: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
        rank_classes: tuple[int, ...] = RANK_CLASSES,
    ) -> None:
        self._modules = dict(modules)
        self._max_slots = max_slots
        self._dtype = dtype
        self._device = device or torch.device("cpu")
        self._rank_classes = rank_classes
        self._banks: dict[int, RankBank] = {}
        self.taken = 0

    def reserve(self, shape: AdapterShape) -> Slot:
        """A slot for a new policy, all zeros.

        Raises: Overloaded when every slot is held, BadRequest when the rank is above the largest class.
        """
        if self.taken >= self._max_slots:
            raise Overloaded(f"all {self._max_slots} adapter slots are in use")
        rank_class = next((c for c in self._rank_classes if c >= shape.rank), None)
        if rank_class is None:
            raise BadRequest(f"rank {shape.rank} is above {self._rank_classes[-1]}", field="adapter.rank")
        if rank_class not in self._banks:
            self._banks[rank_class] = RankBank(self._modules, rank_class, self._dtype, self._device)
        paths = tuple(path for path in self._modules if path.rpartition(".")[2] in shape.targets)
        slot = self._banks[rank_class].reserve(shape, paths)
        self.taken += 1
        return slot

    def release(self, slot: Slot) -> None:
        """Give a slot back."""
        self._banks[slot.rank_class].release(slot)
        self.taken -= 1

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
            bound = a.shape[1] ** -0.5
            a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=generator))
            b.zero_()
        bank.refresh(slot)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
