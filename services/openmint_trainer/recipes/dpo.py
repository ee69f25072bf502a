"""Direct preference optimisation: learn which of two answers is preferred, measured from the base.

The reference is the base itself, asked without any adapter when a pair first comes up; there is no second model.
"""

from collections.abc import Mapping

from openmint_trainer.data import tokenise_pairs
from openmint_trainer.recipes.from_rows import FromRows
from openmint_trainer.rows import Row


class DirectPreferences(FromRows):
    """Each row of the dataset becomes two, chosen and rejected, which are dealt out and trained together.

    `training.batch_rows` counts pairs. The loss is the mean over the batch's pairs; `loss.config.beta` says how far
    from the base a preference may lead.
    """

    name = "dpo"
    losses = ("dpo",)
    read_rows = staticmethod(tokenise_pairs)
    unit_rows = 2

    def weigh(self, batch: list[Row]) -> list[Row]:
        """One pair weighs 1 / pairs, however long its answers are."""
        share = 1.0 / (len(batch) // self.unit_rows)
        return [row.scaled(share) for row in batch]

    def tell(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """accuracy: share of pairs whose chosen answer gained more over the base; margin: beta * its lead, in nats."""
        pairs = metrics.get("pairs", 0.0)
        if not pairs:
            return {}
        return {"accuracy": metrics["preferred_pairs"] / pairs, "margin": metrics["margin_sum"] / pairs}
