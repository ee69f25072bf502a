"""Supervised fine-tuning: the rows of a dataset in shuffled epochs, cross entropy on what is to be learnt."""

from openmint_trainer.data import tokenise_rows
from openmint_trainer.recipes.from_rows import FromRows


class SupervisedFineTuning(FromRows):
    """The loss is a sum over tokens; each batch's weights are divided by its own number of trained tokens, so the
    gradient is that of the mean over the batch."""

    name = "sft"
    losses = ("cross_entropy",)
    read_rows = staticmethod(tokenise_rows)
