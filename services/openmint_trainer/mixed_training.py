"""Many policies trained at once in mixed micro-batches: the trainer's core, without bus, catalogue or store.

One call of `advance` is one micro-batch. A run takes an optimizer step as soon as its own batch has gone through,
whatever the others are doing, so a long batch never holds up a short one.
"""

import hashlib
from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from openmint.errors import OpenmintError
from openmint.events import TrainRequested
from openmint.training_targets import choose_targets
from openmint_trainer.banks import AdapterShape
from openmint_trainer.checkpoints import BrokenCheckpoint, Checkpoint, CheckpointMeta, SavedFile, encode_generator
from openmint_trainer.executor import Executor, TrainedPolicy, Work
from openmint_trainer.packing import Packer, check_budget, check_vocabulary
from openmint_trainer.recipes import RECIPES, FromRows, GroupRelativePolicyOptimisation
from openmint_trainer.references import ReferenceCache
from openmint_trainer.rollouts.episodes import RolloutBatch
from openmint_trainer.rows import Portion, Row, split_batch

PORTION_TOKENS = 512
"""A policy's own batch is cut into portions of about this size: large enough to fill a matrix product, small enough
that several policies fit into one micro-batch."""


@dataclass(slots=True, eq=False)
class Run:
    """One job in training."""

    key: Hashable
    tenant: str
    policy: TrainedPolicy
    recipe: FromRows | GroupRelativePolicyOptimisation
    references: ReferenceCache
    step: int = 0
    tokens: int = 0
    last_loss: float | None = None
    waiting: deque[Portion] = field(default_factory=deque)
    in_step_loss: float = 0.0
    in_step_tokens: int = 0
    in_step_metrics: dict[str, float] = field(default_factory=dict[str, float])
    is_between_steps: bool = True
    failure: OpenmintError | None = None
    """Why its next step can't be taken."""

    @property
    def rollouts(self) -> GroupRelativePolicyOptimisation | None:
        """The recipe, when it learns from rollouts."""
        return self.recipe if isinstance(self.recipe, GroupRelativePolicyOptimisation) else None

    @property
    def may_begin(self) -> bool:
        """Whether the rows of its next step are there; while rollouts are out it has no work for the packer."""
        if self.waiting or self.is_done or self.failure or self.policy.diverged or not self.is_between_steps:
            return False
        return self.rollouts is None or self.rollouts.is_ready(self.step)

    @property
    def may_be_saved(self) -> bool:
        """Whether a checkpoint made now would resume exactly."""
        return self.is_between_steps and (self.rollouts is None or self.rollouts.is_exact_at(self.step))

    @property
    def is_done(self) -> bool:
        """All optimizer steps are taken."""
        return self.step >= self.recipe.steps


@dataclass(frozen=True, slots=True)
class StepFinished:
    """A run took an optimizer step.

    `loss` is the sum over the batch with the recipe's weights: for sft the mean nats per trained token. `metrics` is
    what the recipe tells of the step.
    """

    key: Hashable
    step: int
    loss: float
    tokens: int
    grad_norm: float
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class RunFailed:
    """A run can't go on, by its own fault; the others are untouched."""

    key: Hashable
    error: OpenmintError


class MixedTraining:
    """Holds the runs and decides what goes through the base next."""

    def __init__(self, executor: Executor, budget_tokens: int, portion_tokens: int = PORTION_TOKENS) -> None:
        self._executor = executor
        self._packer = Packer(budget_tokens)
        self._portion_tokens = min(portion_tokens, self._packer.budget_tokens)
        self._runs: dict[Hashable, Run] = {}
        self.is_draining = False
        """True: no new batch is begun; every run comes to rest between two steps."""

    @property
    def runs(self) -> dict[Hashable, Run]:
        """The runs that hold a slot, by key."""
        return self._runs

    @property
    def has_work(self) -> bool:
        """Whether `advance` would do anything."""
        return any(run.waiting or (run.may_begin and not self.is_draining) for run in self._runs.values())

    def admit(
        self,
        key: Hashable,
        tenant: str,
        spec: TrainRequested,
        rows: list[Row],
        checkpoint: Checkpoint | None = None,
        rollout_lag: int = 0,
    ) -> Run:
        """Give a job a slot, fresh or from a checkpoint. A job of rollouts comes without rows.

        `rollout_lag` is how many steps its sampling may run ahead of its learning.

        Raises: BadRequest for targets, rank or loss, BadDataset for a row above the token budget or with a token that
            the base lacks, Overloaded when no slot is free, BrokenCheckpoint when the checkpoint is of another
            training.
        """
        recipe_class = GroupRelativePolicyOptimisation if spec.recipe == "grpo" else RECIPES[spec.recipe]
        recipe_class.check(spec)
        check_budget(rows, self._packer.budget_tokens, recipe_class.unit_rows)
        check_vocabulary(rows, self._executor.base.head_VH.shape[0], recipe_class.unit_rows)
        targets = choose_targets(spec.adapter.targets, self._executor.base.modules)
        shape = AdapterShape(spec.adapter.rank, spec.adapter.alpha, targets)
        if checkpoint is None:
            policy = self._executor.open(shape, spec.training.seed)
        else:
            _check_same_training(checkpoint.meta, shape, self._executor)
            policy = self._executor.restore(checkpoint)
        try:
            recipe = self._make_recipe(spec, rows, policy, checkpoint.meta if checkpoint else None, rollout_lag)
        except OpenmintError:
            self._executor.close(policy)
            raise
        run = Run(key, tenant, policy, recipe, ReferenceCache(rows, self._executor.reference_logprobs))
        if checkpoint is not None:
            run.step, run.tokens, run.last_loss = (
                checkpoint.meta.step,
                checkpoint.meta.tokens,
                checkpoint.meta.last_loss,
            )
        self._runs[key] = run
        self._packer.enter(key, tenant)
        return run

    def _make_recipe(
        self, spec: TrainRequested, rows: list[Row], policy: TrainedPolicy, meta: CheckpointMeta | None, lag: int
    ) -> FromRows | GroupRelativePolicyOptimisation:
        if spec.recipe == GroupRelativePolicyOptimisation.name:
            budget = self._packer.budget_tokens
            return GroupRelativePolicyOptimisation(
                spec, lag, meta.step if meta else 0, lambda rows: self._executor.reference_logprobs(rows, budget)
            )
        return RECIPES[spec.recipe](rows, spec, policy.generator, meta.cursor if meta else None)

    @property
    def budget_tokens(self) -> int:
        """The most tokens that a row may have."""
        return self._packer.budget_tokens

    def deliver(self, key: Hashable, batch: RolloutBatch) -> None:
        """Episodes of a run have come; one that is gone does not want them any more."""
        run = self._runs.get(key)
        if run is not None and run.rollouts is not None:
            run.rollouts.deliver(batch)

    def drop(self, key: Hashable) -> None:
        """Take a run out and give its slot back."""
        run = self._runs.pop(key)
        self._packer.leave(key)
        self._executor.close(run.policy)

    def advance(self) -> list[StepFinished | RunFailed]:
        """One micro-batch; tells which runs took a step or failed. A failed run stays until it is dropped."""
        events: list[StepFinished | RunFailed] = []
        for run in self._runs.values():
            if run.may_begin and not self.is_draining:
                self._begin_step(run)
                if run.failure is not None:
                    events.append(RunFailed(run.key, run.failure))
                elif not run.waiting:
                    events.append(self._end_step(run))
        chosen = self._packer.pack({key: run.waiting for key, run in self._runs.items()})
        if not chosen:
            return events
        work = [self._work_of(self._runs[key], portion) for key, portion in chosen]
        results = self._executor.forward_backward(work)
        for (key, portion), result in zip(chosen, results, strict=True):
            run = self._runs[key]
            run.in_step_loss += result.loss
            run.in_step_tokens += portion.tokens
            for name, value in result.metrics.items():
                run.in_step_metrics[name] = run.in_step_metrics.get(name, 0.0) + value
            if run.rollouts is not None and not run.policy.diverged:
                run.rollouts.observe(portion, result.logprobs)
        touched = dict.fromkeys(key for key, _ in chosen)
        return [*events, *(self._end_step(self._runs[key]) for key in touched if not self._runs[key].waiting)]

    def weights_digest(self, key: Hashable) -> str:
        """`sha256:…` of a run's weights as the base computes with them."""
        policy = self._runs[key].policy
        row = self._executor.banks.bank_of(policy.slot).row(policy.slot).compute
        raw = row.detach().cpu().contiguous().view(torch.uint8).numpy().data
        return f"sha256:{hashlib.sha256(raw).hexdigest()}"

    def save(self, key: Hashable, path: Path) -> SavedFile:
        """Write a run's checkpoint. Only between two of its steps, where it is exact.

        Raises: ValueError in the middle of a step.
        """
        run = self._runs[key]
        if not run.is_between_steps:
            raise ValueError(f"run {key} is inside step {run.step + 1}")
        shape = run.policy.slot.shape
        meta = CheckpointMeta(
            base=self._executor.base.name,
            base_digest=self._executor.base.digest,
            rank=shape.rank,
            alpha=shape.alpha,
            targets=list(shape.targets),
            step=run.step,
            adam_step=run.policy.adam_step,
            tokens=run.tokens,
            cursor=run.recipe.cursor,
            random_state=encode_generator(run.policy.generator),
            seed=run.policy.seed,
            recipe=run.recipe.name,
            last_loss=run.last_loss,
        )
        return self._executor.save(run.policy, path, meta)

    def _work_of(self, run: Run, portion: Portion) -> Work:
        # Here and not when the step begins: what the base is asked for is then bounded by what the packer has charged.
        completed = run.references.complete(portion) if run.recipe.needs_reference else portion
        return Work(run.policy, completed, run.recipe.loss, run.recipe.config)

    def _begin_step(self, run: Run) -> None:
        try:
            batch = _next_batch(run)
        except OpenmintError as error:
            run.failure = type(error)(f"step {run.step + 1}: {error.detail}", field=error.field)
            return
        run.waiting.extend(split_batch(batch, self._portion_tokens, run.recipe.unit_rows))
        run.in_step_loss, run.in_step_tokens, run.in_step_metrics = 0.0, 0, {}
        run.is_between_steps = False

    def _end_step(self, run: Run) -> StepFinished | RunFailed:
        run.is_between_steps = True
        measured: Mapping[str, float] = {}
        grad_norm = 0.0
        try:
            if run.rollouts is not None and not run.policy.diverged:
                measured = run.rollouts.close_step(run.step, lambda: self.weights_digest(run.key))
            # A step whose groups were all alike teaches nothing, and moves neither weights nor moments.
            if run.in_step_tokens or run.policy.diverged:
                grad_norm = self._executor.optim_step(run.policy, run.recipe.adam(run.step + 1))
        except OpenmintError as error:
            run.failure = type(error)(f"step {run.step + 1}: {error.detail}", field=error.field)
            return RunFailed(run.key, run.failure)
        run.step += 1
        run.tokens += run.in_step_tokens
        run.last_loss = run.in_step_loss
        told = {**run.recipe.tell(run.in_step_metrics), **measured}
        return StepFinished(run.key, run.step, run.in_step_loss, run.tokens, grad_norm, told)


def _next_batch(run: Run) -> list[Row]:
    recipe = run.recipe
    if isinstance(recipe, GroupRelativePolicyOptimisation):
        return recipe.next_batch(run.step)
    return recipe.next_batch()


def _check_same_training(meta: CheckpointMeta, shape: AdapterShape, executor: Executor) -> None:
    found = (meta.base_digest, meta.rank, meta.alpha, tuple(meta.targets))
    wanted = (executor.base.digest, shape.rank, shape.alpha, shape.targets)
    if found != wanted:
        raise BrokenCheckpoint(f"the checkpoint is of another training: it has {found}, the job wants {wanted}")
