"""The order in which a dataset is dealt out: every row once in an epoch, each epoch in an order of its own."""

import random

import torch

from openmint_trainer.checkpoints import DataCursor


class Epochs:
    """Deals out the indices of `count` things. `cursor` says where, and with it and the generator dealing goes on."""

    def __init__(self, count: int, generator: torch.Generator, cursor: DataCursor | None = None) -> None:
        self._count = count
        self._generator = generator
        self.cursor = cursor or DataCursor(order_seed=self._draw_seed())
        self._order = self._order_of(self.cursor)

    def deal(self, wanted: int) -> list[int]:
        """The next `wanted` indices; goes on into the next epoch where one ends."""
        dealt: list[int] = []
        while len(dealt) < wanted:
            if self.cursor.index == self._count:
                self.cursor = DataCursor(epoch=self.cursor.epoch + 1, order_seed=self._draw_seed())
                self._order = self._order_of(self.cursor)
            dealt.append(self._order[self.cursor.index])
            self.cursor = self.cursor.model_copy(update={"index": self.cursor.index + 1})
        return dealt

    def _draw_seed(self) -> int:
        return int(torch.randint(2**62, (), generator=self._generator))

    def _order_of(self, cursor: DataCursor) -> list[int]:
        order = list(range(self._count))
        random.Random(cursor.order_seed).shuffle(order)
        return order
