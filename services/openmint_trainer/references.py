"""What the base says of a job's rows: asked when a row is first trained on, and then kept.

The base is resident anyway, so a reference costs one forward pass of each row and 4 bytes per token, and no memory for
a second model.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from openmint_trainer.rows import Portion, Row


class ReferenceCache:
    """Fills in `reference_logprobs` of rows that have none. Holds one run's rows and goes with it."""

    def __init__(self, rows: Sequence[Row], ask: Callable[[Sequence[Row]], list[torch.Tensor]]) -> None:
        self._ask = ask
        # Weighted copies of a row share its tokens; `rows` is kept so that no other tensor can take their identity.
        self._rows = rows
        self._known: dict[int, torch.Tensor] = {}

    def complete(self, portion: Portion) -> Portion:
        """The same rows, each with its reference; the base is asked for those that it has not seen."""
        lacking = [row for row in portion.rows if row.reference_logprobs is None and id(row.tokens) not in self._known]
        unknown = list({id(row.tokens): row for row in lacking}.values())
        if unknown:
            for row, logprobs in zip(unknown, self._ask(unknown), strict=True):
                self._known[id(row.tokens)] = logprobs
        return Portion(
            tuple(
                row
                if row.reference_logprobs is not None
                else replace(row, reference_logprobs=self._known[id(row.tokens)])
                for row in portion.rows
            )
        )
