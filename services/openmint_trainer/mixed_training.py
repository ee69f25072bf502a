"""Many policies trained at once in mixed micro-batches: the trainer's core, without bus, catalogue or store.

One call of `advance` is one micro-batch. A run takes an optimizer step as soon as its own batch has gone through,
whatever the others are doing, so a long batch never holds up a short one.
"""

from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from openmint.errors import OpenmintError
from openmint.events import TrainRequested
from openmint.training_targets import choose_targets
from openmint_trainer.banks import AdapterShape
from openmint_trainer.checkpoints import BrokenCheckpoint, Checkpoint, CheckpointMeta, SavedFile, encode_generator
from openmint_trainer.executor import Executor, TrainedPolicy, Work
from openmint_trainer.packing import Packer, check_budget, check_vocabulary
from openmint_trainer.recipes import RECIPES, FromRows
from openmint_trainer.references import ReferenceCache
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
    recipe: FromRows
    references: ReferenceCache
    step: int = 0
    tokens: int = 0
    last_loss: float | None = None
    waiting: deque[Portion] = field(default_factory=deque)
    in_step_loss: float = 0.0
    in_step_tokens: int = 0
    in_step_metrics: dict[str, float] = field(default_factory=dict[str, float])
    is_between_steps: bool = True

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
        return any(run.waiting or not (run.is_done or self.is_draining) for run in self._runs.values())

    def admit(
        self, key: Hashable, tenant: str, spec: TrainRequested, rows: list[Row], checkpoint: Checkpoint | None = None
    ) -> Run:
        """Give a job a slot, fresh or from a checkpoint.

        Raises: BadRequest for targets, rank or loss, BadDataset for a row above the token budget or with a token that
            the base lacks, Overloaded when no slot is free, BrokenCheckpoint when the checkpoint is of another
            training.
        """
        recipe_class = RECIPES[spec.recipe]
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
        cursor = checkpoint.meta.cursor if checkpoint else None
        recipe = recipe_class(rows, spec, policy.generator, cursor)
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

    def drop(self, key: Hashable) -> None:
        """Take a run out and give its slot back."""
        run = self._runs.pop(key)
        self._packer.leave(key)
        self._executor.close(run.policy)

    def advance(self) -> list[StepFinished | RunFailed]:
        """One micro-batch; tells which runs took a step or failed. A failed run stays until it is dropped."""
        for run in self._runs.values():
            if not run.waiting and not run.is_done and not self.is_draining and not run.policy.diverged:
                self._begin_step(run)
        chosen = self._packer.pack({key: run.waiting for key, run in self._runs.items()})
        if not chosen:
            return []
        work = [self._work_of(self._runs[key], portion) for key, portion in chosen]
        results = self._executor.forward_backward(work)
        for (key, portion), result in zip(chosen, results, strict=True):
            run = self._runs[key]
            run.in_step_loss += result.loss
            run.in_step_tokens += portion.tokens
            for name, value in result.metrics.items():
                run.in_step_metrics[name] = run.in_step_metrics.get(name, 0.0) + value
        touched = dict.fromkeys(key for key, _ in chosen)
        return [self._end_step(self._runs[key]) for key in touched if not self._runs[key].waiting]

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
        run.waiting.extend(split_batch(run.recipe.next_batch(), self._portion_tokens, run.recipe.unit_rows))
        run.in_step_loss, run.in_step_tokens, run.in_step_metrics = 0.0, 0, {}
        run.is_between_steps = False

    def _end_step(self, run: Run) -> StepFinished | RunFailed:
        run.is_between_steps = True
        try:
            grad_norm = self._executor.optim_step(run.policy, run.recipe.adam(run.step + 1))
        except OpenmintError as error:
            return RunFailed(run.key, type(error)(f"step {run.step + 1}: {error.detail}", field=error.field))
        run.step += 1
        run.tokens += run.in_step_tokens
        run.last_loss = run.in_step_loss
        told = run.recipe.tell(run.in_step_metrics)
        return StepFinished(run.key, run.step, run.in_step_loss, run.tokens, grad_norm, told)


def _check_same_training(meta: CheckpointMeta, shape: AdapterShape, executor: Executor) -> None:
    found = (meta.base_digest, meta.rank, meta.alpha, tuple(meta.targets))
    wanted = (executor.base.digest, shape.rank, shape.alpha, shape.targets)
    if found != wanted:
        raise BrokenCheckpoint(f"the checkpoint is of another training: it has {found}, the job wants {wanted}")
