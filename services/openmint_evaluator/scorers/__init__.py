"""Scorers of held-out rows through the serving path. `SCORERS` is the registry; a job names one."""

from openmint_evaluator.scorers.contract import ScoredModel, Scorer
from openmint_evaluator.scorers.label import LABEL
from openmint_evaluator.scorers.loss import LOSS

SCORERS: dict[str, Scorer] = {scorer.name: scorer for scorer in (LABEL, LOSS)}

__all__ = ["LABEL", "LOSS", "SCORERS", "ScoredModel", "Scorer"]
