"""A loss of the client's own, which arrives as a weight for every token.

Any loss L of the log-probabilities p has, at the current policy, the gradient of cross entropy with weights -dL/dp: the
client computes them, and negative ones push a token down.
"""

from openmint_trainer.recipes.from_rows import FromRows
from openmint_trainer.rows import Row
from openmint_trainer.token_data import weighted_rows


class ClientWeights(FromRows):
    """Cross entropy, summed with the weights as they are: their scale is the client's business."""

    name = "weights"
    losses = ("cross_entropy",)
    read_rows = staticmethod(weighted_rows)

    def weigh(self, batch: list[Row]) -> list[Row]:
        """Nothing is divided by anything."""
        return batch
