"""Recipes: short programs over the executor's primitives, by name.

A recipe of RECIPES deals out rows of its dataset: it is made of (rows, training, optimizer, generator, cursor), and
has `loss`, `steps`, `cursor`, `next_batch()` and `adam(step)`. GroupRelativePolicyOptimisation learns from rollouts,
which come when they are ready: it says which are due and takes them as they are delivered.
"""

from openmint_trainer.recipes.grpo import GroupRelativePolicyOptimisation
from openmint_trainer.recipes.sft import SupervisedFineTuning

RECIPES = {SupervisedFineTuning.name: SupervisedFineTuning}

__all__ = ["RECIPES", "GroupRelativePolicyOptimisation", "SupervisedFineTuning"]
