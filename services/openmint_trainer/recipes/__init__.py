"""Recipes: short programs over the executor's primitives, by name.

A recipe of RECIPES deals out rows of its dataset. GroupRelativePolicyOptimisation learns from rollouts, which come when
they are ready: it says which are due and takes them as they are delivered.
"""

from collections.abc import Sequence

from openmint.datasets import check_rows
from openmint.errors import BadRequest
from openmint.events import TrainRequested
from openmint.row_forms import JsonRow, check_form
from openmint_trainer.data import Tokenizer
from openmint_trainer.recipes.distillation import Distillation
from openmint_trainer.recipes.dpo import DirectPreferences
from openmint_trainer.recipes.from_rows import FromRows
from openmint_trainer.recipes.grpo import GroupRelativePolicyOptimisation
from openmint_trainer.recipes.sft import SupervisedFineTuning
from openmint_trainer.recipes.weights import ClientWeights
from openmint_trainer.rows import Row

RECIPES: dict[str, type[FromRows]] = {
    recipe.name: recipe for recipe in (SupervisedFineTuning, DirectPreferences, Distillation, ClientWeights)
}


def read_rows(spec: TrainRequested, raw: Sequence[JsonRow], tokenizer: Tokenizer) -> list[Row]:
    """A job's rows as its recipe trains on them; a unit of several rows lies together.

    Raises: BadRequest for a loss that the recipe does not take or a recipe that samples its rows, BadDataset naming the
        row (from 1) that it can't read.
    """
    if spec.recipe not in RECIPES:
        raise BadRequest(f"recipe {spec.recipe} learns what it samples; its rows can't be read ahead", field="recipe")
    recipe = RECIPES[spec.recipe]
    recipe.check(spec)
    check_rows(raw)
    check_form(raw, spec.recipe)
    return recipe.read_rows(raw, tokenizer, spec.training.max_tokens_per_row)


__all__ = [
    "RECIPES",
    "ClientWeights",
    "DirectPreferences",
    "Distillation",
    "FromRows",
    "GroupRelativePolicyOptimisation",
    "SupervisedFineTuning",
    "read_rows",
]
