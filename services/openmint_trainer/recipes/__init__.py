"""Recipes: short programs over the executor's primitives, by name."""

from openmint_trainer.recipes.sft import SupervisedFineTuning

RECIPES = {SupervisedFineTuning.name: SupervisedFineTuning}

__all__ = ["RECIPES", "SupervisedFineTuning"]
