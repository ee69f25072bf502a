"""Supervised fine-tuning: the rows of a dataset in shuffled epochs, cross entropy on what is to be learnt."""

import random
from collections.abc import Sequence

import torch

from openmint.events import OptimizerSpec, TrainingSpec
from openmint_trainer.adam import AdamParams, params_at
from openmint_trainer.checkpoints import DataCursor
from openmint_trainer.rows import Row


class SupervisedFineTuning:
    """Deals out one batch per optimizer step.

    The loss is a sum over tokens; each batch's weights are divided by its own number of trained tokens, so the
    gradient is that of the mean over the batch.
    """

    name = "sft"
    loss = "cross_entropy"

    def __init__(
        self,
        rows: Sequence[Row],
        training: TrainingSpec,
        optimizer: OptimizerSpec,
        generator: torch.Generator,
        cursor: DataCursor | None = None,
    ) -> None:
        self.steps = training.steps
        self._rows = rows
        self._batch_rows = training.batch_rows
        self._optimizer = optimizer
        self._generator = generator
        self.cursor = cursor or DataCursor(order_seed=self._draw_seed())
        self._order = self._order_of(self.cursor)

    def next_batch(self) -> list[Row]:
        """The rows of the next step, weighted; goes on into the next epoch where one ends."""
        batch: list[Row] = []
        while len(batch) < self._batch_rows:
            if self.cursor.index == len(self._rows):
                self.cursor = DataCursor(epoch=self.cursor.epoch + 1, order_seed=self._draw_seed())
                self._order = self._order_of(self.cursor)
            batch.append(self._rows[self._order[self.cursor.index]])
            self.cursor = self.cursor.model_copy(update={"index": self.cursor.index + 1})
        share = 1.0 / sum(row.trained_tokens for row in batch)
        return [row.scaled(share) for row in batch]

    def adam(self, step: int) -> AdamParams:
        """The update of step `step`, from 1."""
        return params_at(self._optimizer, step, self.steps)

    def _draw_seed(self) -> int:
        return int(torch.randint(2**62, (), generator=self._generator))

    def _order_of(self, cursor: DataCursor) -> list[int]:
        order = list(range(len(self._rows)))
        random.Random(cursor.order_seed).shuffle(order)
        return order
