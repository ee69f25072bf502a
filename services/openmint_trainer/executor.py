"""The primitives that carry every recipe: forward_backward, optim_step, save and restore.

Sampling is not here: rollouts go through engines. Nothing here knows jobs, the bus or the catalogue, and everything
is called from one thread.

Shape legend: T packed tokens of a micro-batch (padding included), H hidden.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from openmint.errors import Diverged
from openmint_trainer.adam import AdamParams, Moments, adam_step
from openmint_trainer.banks import AdapterShape, Kind, Slot, SlotBanks
from openmint_trainer.checkpoints import Checkpoint, CheckpointMeta, SavedFile, write_checkpoint
from openmint_trainer.logprobs import target_logprobs
from openmint_trainer.losses import LossInputs, find_loss
from openmint_trainer.packing import padded
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


@dataclass(frozen=True, slots=True)
class Work:
    """One policy's portion of a micro-batch, and the loss to take of it."""

    policy: TrainedPolicy
    portion: Portion
    loss: str = "cross_entropy"
    config: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class WorkResult:
    """`loss` is the sum over positions, as the loss defines it; logprobs [N] of the trained positions, nats."""

    policy: TrainedPolicy
    loss: float
    logprobs: torch.Tensor


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

        A policy whose loss is not finite is marked diverged and adds nothing; the others are untouched by it.
        """
        base = self.base
        rows = [row for item in work for row in item.portion.rows]
        lengths = [len(row) for row in rows]
        total = sum(lengths)
        filler = padded(total) - total
        sequence_lengths = [*lengths, filler] if filler else lengths
        tokens_T = torch.cat([*(row.tokens for row in rows), torch.zeros(filler, dtype=torch.int64)])
        positions_T = torch.cat([torch.arange(length) for length in sequence_lengths])
        base.route.segments = _segments(work)
        try:
            # With every parameter frozen, the embeddings are the leaf that makes autograd build a graph at all.
            embedded_1TH = base.embeddings(tokens_T[None].to(base.device)).detach().requires_grad_()
            hidden_TH = base.decoder(
                inputs_embeds=embedded_1TH,
                position_ids=positions_T[None].to(base.device),
                sequence_lengths=sequence_lengths,
                use_cache=False,
            ).last_hidden_state[0]
            results, losses = self._losses(work, hidden_TH)
            if losses:
                torch.stack(losses).sum().backward()
        finally:
            base.route.segments = ()
        return results

    def reference_logprobs(self, rows: Sequence[Row], budget_tokens: int = 2048) -> list[torch.Tensor]:
        """What the base without any adapter says of the rows' targets, nats, each [L] float32; 0 where untrained."""
        answers: list[torch.Tensor] = []
        base = self.base
        with torch.no_grad():
            for portion in split_batch(rows, budget_tokens):
                lengths = [len(row) for row in portion.rows]
                filler = padded(sum(lengths)) - sum(lengths)
                lengths += [filler] if filler else []
                tokens_T = torch.cat([*(row.tokens for row in portion.rows), torch.zeros(filler, dtype=torch.int64)])
                hidden_TH = base.decoder(
                    inputs_embeds=base.embeddings(tokens_T[None].to(base.device)),
                    position_ids=torch.cat([torch.arange(length) for length in lengths])[None].to(base.device),
                    sequence_lengths=lengths,
                    use_cache=False,
                ).last_hidden_state[0]
                for row, hidden in zip(portion.rows, hidden_TH.split(lengths), strict=False):
                    used = row.weights.nonzero()[:, 0]
                    logprobs = torch.zeros(len(row))
                    targets = row.targets[used].to(hidden.device)
                    logprobs[used] = target_logprobs(hidden[used.to(hidden.device)], base.head_VH, targets).cpu()
                    answers.append(logprobs)
        return answers

    def _losses(self, work: Sequence[Work], hidden_TH: torch.Tensor) -> tuple[list[WorkResult], list[torch.Tensor]]:
        results: list[WorkResult] = []
        losses: list[torch.Tensor] = []
        per_work = hidden_TH.split([*(w.portion.tokens for w in work), hidden_TH.shape[0] - _tokens(work)])
        for item, hidden in zip(work, per_work, strict=False):
            weights = torch.cat([row.weights for row in item.portion.rows]).to(hidden.device)
            targets = torch.cat([row.targets for row in item.portion.rows]).to(hidden.device)
            trained = weights.nonzero()[:, 0]
            # Each portion makes its own logits, so that their shapes do not depend on who else is in the batch.
            logprobs = target_logprobs(hidden.index_select(0, trained), self.base.head_VH, targets[trained])
            extras = {name: _extra(item.portion.rows, name, trained) for name in _ROW_EXTRAS}
            output = find_loss(item.loss)(LossInputs(logprobs, weights[trained], **extras), item.config)
            value = float(output.loss.detach())
            if math.isfinite(value):
                losses.append(output.loss)
                item.policy.has_pending_gradients = True
            else:
                item.policy.diverged = "the loss is not finite; lower optimizer.learning_rate or look at the data"
            results.append(WorkResult(item.policy, value, logprobs.detach()))
        return results, losses

    def optim_step(self, policy: TrainedPolicy, params: AdamParams) -> float:
        """Update a policy by its accumulated gradient; returns that gradient's norm.

        Raises: Diverged when anything of this policy is not finite. Others are not touched.
        """
        if policy.diverged:
            raise Diverged(policy.diverged)
        policy.adam_step += 1
        policy.has_pending_gradients = False
        bank = self.banks.bank_of(policy.slot)
        row = bank.row(policy.slot)
        try:
            return adam_step(Moments(row.masters, row.gradients, row.moment1, row.moment2), params, policy.adam_step)
        except Diverged as error:
            policy.diverged = error.detail
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


_ROW_EXTRAS = ("sampler_logprobs", "advantages", "reference_logprobs")


def _extra(rows: Sequence[Row], name: str, trained: torch.Tensor) -> torch.Tensor | None:
    values: list[torch.Tensor | None] = [getattr(row, name) for row in rows]
    given = [value for value in values if value is not None]
    return torch.cat(given).to(trained.device)[trained] if len(given) == len(values) else None


def _tokens(work: Sequence[Work]) -> int:
    return sum(item.portion.tokens for item in work)


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
