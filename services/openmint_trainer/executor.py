"""The primitives that carry every recipe: forward_backward, optim_step, save and restore.

Sampling is not here: rollouts go through engines. Nothing here knows jobs, the bus or the catalogue, and everything
is called from one thread.

Shape legend: T packed tokens of a micro-batch, H hidden.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from openmint.errors import Diverged, OpenmintError
from openmint_trainer.adam import AdamParams, Moments, adam_step
from openmint_trainer.banks import AdapterShape, Kind, Slot, SlotBanks
from openmint_trainer.checkpoints import Checkpoint, CheckpointMeta, SavedFile, write_checkpoint
from openmint_trainer.logprobs import frozen_logprobs
from openmint_trainer.losses import NO_CONFIG, find_loss
from openmint_trainer.portion_inputs import make_inputs
from openmint_trainer.resident_base import ResidentBase
from openmint_trainer.rows import Portion, Row, split_batch
from openmint_trainer.segmented_linear import Segment


@dataclass(slots=True, eq=False)
class TrainedPolicy:
    """A policy in a slot, with everything of it that is not a tensor of the bank."""

    slot: Slot
    seed: int
    generator: torch.Generator
    adam_step: int = 0
    has_pending_gradients: bool = False
    diverged: str = ""
    """Why this policy can't go on; empty while it is well."""
    refusal: OpenmintError | None = None
    """What its loss refused, when that is the reason."""

    def fail(self, detail: str, refusal: OpenmintError | None = None) -> None:
        """It can't go on; its next optimizer step says why."""
        self.diverged, self.refusal = detail, refusal


@dataclass(frozen=True, slots=True)
class Work:
    """One policy's portion of a micro-batch, and the loss to take of it."""

    policy: TrainedPolicy
    portion: Portion
    loss: str = "cross_entropy"
    config: Mapping[str, float] = field(default_factory=lambda: NO_CONFIG)
    """The loss's settings; what is not here has the loss's default."""


@dataclass(frozen=True, slots=True)
class WorkResult:
    """`loss` is the sum over positions, as the loss defines it, and so are the metrics.

    logprobs are those of the positions that the loss looked at, nats: [N], or [N, K] with several targets.
    """

    policy: TrainedPolicy
    loss: float
    logprobs: torch.Tensor
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


class Executor:
    """Trains policies on one resident base."""

    def __init__(self, base: ResidentBase, max_slots: int, max_bank_bytes: int = 4 << 30) -> None:
        self.base = base
        self.banks: SlotBanks = base.make_banks(max_slots, max_bank_bytes)

    def open(self, shape: AdapterShape, seed: int) -> TrainedPolicy:
        """Give a fresh policy a slot. Raises: Overloaded, BadRequest."""
        slot = self.banks.reserve(shape)
        self.banks.initialise(slot, seed)
        return TrainedPolicy(slot, seed, torch.Generator().manual_seed(seed))

    def restore(self, checkpoint: Checkpoint) -> TrainedPolicy:
        """Continue a policy from a checkpoint, in any free slot. Raises: Overloaded, BadRequest."""
        meta = checkpoint.meta
        slot = self.banks.reserve(AdapterShape(meta.rank, meta.alpha, tuple(meta.targets)))
        bank = self.banks.bank_of(slot)
        has_gradients = False
        for path in slot.paths:
            for prefix, kind in _SAVED_KINDS.items():
                for matrix, part in zip(bank.matrices(kind, slot, path), ("lora_A", "lora_B"), strict=True):
                    saved = checkpoint.tensors.get(f"{prefix}.{path}.{part}")
                    if saved is not None:
                        matrix.copy_(saved)
                        has_gradients = has_gradients or kind == "gradients"
        bank.refresh(slot)
        generator = torch.Generator()
        generator.set_state(meta.generator_state())
        return TrainedPolicy(slot, meta.seed, generator, meta.adam_step, has_gradients)

    def close(self, policy: TrainedPolicy) -> None:
        """Give the policy's slot back; nothing of it stays in memory."""
        self.banks.release(policy.slot)

    def forward_backward(self, work: Sequence[Work]) -> list[WorkResult]:
        """Put the portions of any number of policies through the base once; add each gradient to its own slot.

        A policy whose loss is not finite, or whose rows or config the loss refuses, is marked and adds nothing; the
        others are untouched by it.
        """
        tokens = [row.tokens for item in work for row in item.portion.rows]
        hidden_TH = self.base.hidden_states(tokens, _segments(work))
        results, losses = self._losses(work, hidden_TH)
        if losses:
            torch.stack(losses).sum().backward()
        return results

    def reference_logprobs(self, rows: Sequence[Row], budget_tokens: int = 2048) -> list[torch.Tensor]:
        """What the base without any adapter says of the rows' targets, nats, each [L] float32 on the CPU.

        No weights but the resident ones are used, and nothing is kept for a gradient. Positions that no loss looks at
        hold 0. A row's bits do not depend on the rows beside it. At most `budget_tokens` go through the base at once,
        unless one row is longer.
        """
        answers: list[torch.Tensor] = []
        with torch.no_grad():
            for portion in split_batch(rows, budget_tokens):
                hidden_TH = self.base.hidden_states([row.tokens for row in portion.rows])
                per_row = hidden_TH.split([len(row) for row in portion.rows])
                for row, hidden in zip(portion.rows, per_row, strict=True):
                    # Each row makes its own logits: their shape then depends on nobody else.
                    used = row.used_positions().nonzero()[:, 0]
                    at = used.to(hidden.device)
                    logprobs = torch.zeros(len(row), dtype=torch.float32)
                    targets = row.targets[used].to(hidden.device)
                    logprobs[used] = frozen_logprobs(hidden.index_select(0, at), self.base.head_VH, targets).cpu()
                    answers.append(logprobs)
        return answers

    def _losses(self, work: Sequence[Work], hidden_TH: torch.Tensor) -> tuple[list[WorkResult], list[torch.Tensor]]:
        results: list[WorkResult] = []
        losses: list[torch.Tensor] = []
        per_work = hidden_TH.split([item.portion.tokens for item in work])
        for item, hidden in zip(work, per_work, strict=True):
            try:
                # Each portion makes its own logits, so that their shapes do not depend on who else is in the batch.
                inputs = make_inputs(item.portion.rows, hidden, self.base.head_VH)
                output = find_loss(item.loss)(inputs, item.config)
            except OpenmintError as error:
                item.policy.fail(error.detail, error)
                results.append(WorkResult(item.policy, math.nan, torch.empty(0)))
                continue
            value = float(output.loss.detach())
            if math.isfinite(value):
                losses.append(output.loss)
                item.policy.has_pending_gradients = True
            else:
                item.policy.fail("the loss is not finite; lower optimizer.learning_rate or look at the data")
            results.append(WorkResult(item.policy, value, inputs.logprobs.detach(), output.metrics))
        return results, losses

    def optim_step(self, policy: TrainedPolicy, params: AdamParams) -> float:
        """Update a policy by its accumulated gradient; returns that gradient's norm.

        Raises: Diverged when anything of this policy is not finite, and what its loss refused. Others are not touched.
        """
        if policy.diverged:
            raise policy.refusal or Diverged(policy.diverged)
        policy.adam_step += 1
        policy.has_pending_gradients = False
        bank = self.banks.bank_of(policy.slot)
        row = bank.row(policy.slot)
        try:
            return adam_step(Moments(row.masters, row.gradients, row.moment1, row.moment2), params, policy.adam_step)
        except Diverged as error:
            policy.fail(error.detail)
            raise
        finally:
            bank.refresh(policy.slot)

    def save(self, policy: TrainedPolicy, path: Path, meta: CheckpointMeta) -> SavedFile:
        """Write the policy's checkpoint: weights, moments and, when there are any, gradients not yet applied."""
        bank = self.banks.bank_of(policy.slot)
        tensors: dict[str, torch.Tensor] = {}
        for prefix, kind in _SAVED_KINDS.items():
            if kind == "gradients" and not policy.has_pending_gradients:
                continue
            for module in policy.slot.paths:
                a, b = bank.matrices(kind, policy.slot, module)
                tensors[f"{prefix}.{module}.lora_A"] = _apart(a)
                tensors[f"{prefix}.{module}.lora_B"] = _apart(b)
        return write_checkpoint(path, Checkpoint(meta, tensors))


_SAVED_KINDS: dict[str, Kind] = {"adapter": "masters", "adam_m": "moment1", "adam_v": "moment2", "grad": "gradients"}


def _segments(work: Sequence[Work]) -> list[Segment]:
    segments: list[Segment] = []
    start = 0
    for item in work:
        end = start + item.portion.tokens
        segments.append(Segment(item.policy.slot, start, end))
        start = end
    return segments


def _apart(matrix: torch.Tensor) -> torch.Tensor:
    # A view into the bank shares its storage with every other matrix, which a safetensors file can't express.
    return matrix.detach().cpu().clone(memory_format=torch.contiguous_format)
