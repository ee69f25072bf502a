"""Off-policy distillation: learn a teacher's likeliest tokens at every position of its completions.

On-policy distillation is reinforcement learning with `openmint_trainer.losses.distillation_advantages`.
"""

from openmint_trainer.recipes.from_rows import FromRows
from openmint_trainer.token_data import teacher_rows


class Distillation(FromRows):
    """Cross entropy against the teacher's renormalised top-K probabilities, mean over the batch's positions.

    The loss differs from KL(teacher ‖ policy) by the teacher's entropy, so it does not fall to 0.
    """

    name = "distillation"
    losses = ("cross_entropy",)
    read_rows = staticmethod(teacher_rows)
