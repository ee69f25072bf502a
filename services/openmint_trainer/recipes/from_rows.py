"""What the recipes that learn a dataset have in common: reading it, dealing it out, the loss and its settings."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch

from openmint.errors import BadRequest
from openmint.events import TrainRequested
from openmint.row_forms import JsonRow
from openmint_trainer.adam import AdamParams, params_at
from openmint_trainer.checkpoints import DataCursor
from openmint_trainer.data import Tokenizer
from openmint_trainer.losses import find_loss
from openmint_trainer.recipes.epochs import Epochs
from openmint_trainer.rows import Row, in_units

ReadRows = Callable[[Sequence[JsonRow], Tokenizer, int], list[Row]]


class FromRows:
    """Deals out one batch of weighted rows per optimizer step."""

    name: ClassVar[str]
    losses: ClassVar[tuple[str, ...]]
    """The losses that a job may name; the first is the recipe's own."""
    read_rows: ClassVar[ReadRows]
    """From raw rows, a tokenizer and the most tokens per row; raises BadDataset naming the row."""
    unit_rows: ClassVar[int] = 1
    """How many neighbouring rows belong together and count as one of `training.batch_rows`."""

    def __init__(
        self,
        rows: Sequence[Row],
        spec: TrainRequested,
        generator: torch.Generator,
        cursor: DataCursor | None = None,
    ) -> None:
        self.loss, self.config = self.check(spec)
        self.steps = spec.training.steps
        self._units = in_units(rows, self.unit_rows)
        self._batch_units = spec.training.batch_rows
        self._optimizer = spec.optimizer
        self._epochs = Epochs(len(self._units), generator, cursor)

    @classmethod
    def check(cls, spec: TrainRequested) -> tuple[str, dict[str, float]]:
        """The loss that the job wants and all of its settings.

        Raises: BadRequest naming the field of a loss or a setting that this recipe does not take.
        """
        wanted = (spec.loss.name if spec.loss else None) or cls.losses[0]
        loss = find_loss(wanted)
        if wanted not in cls.losses:
            raise BadRequest(
                f"recipe {cls.name} does not take loss {wanted}; it takes {', '.join(cls.losses)}", field="loss.name"
            )
        return wanted, loss.resolve(spec.loss.config if spec.loss else {})

    @property
    def cursor(self) -> DataCursor:
        """Where in its data the recipe is."""
        return self._epochs.cursor

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the base."""
        return "reference_logprobs" in find_loss(self.loss).needs_with(self.config)

    def next_batch(self) -> list[Row]:
        """The rows of the next step, weighted."""
        units = [self._units[index] for index in self._epochs.deal(self._batch_units)]
        return self.weigh([row for unit in units for row in unit])

    def weigh(self, batch: list[Row]) -> list[Row]:
        """Divide the weights by the number of trained tokens in the batch: the gradient is that of the mean."""
        share = 1.0 / sum(row.trained_tokens for row in batch)
        return [row.scaled(share) for row in batch]

    def adam(self, step: int) -> AdamParams:
        """The update of step `step`, from 1."""
        return params_at(self._optimizer, step, self.steps)

    def tell(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """What a watcher is told of a step, from the sums and counts of its losses."""
        del metrics
        return {}
