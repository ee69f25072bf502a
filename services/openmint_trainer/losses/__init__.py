"""Losses by name. A new one goes into its own file and into LOSSES; the tests then pick it up."""

from openmint.errors import BadRequest
from openmint_trainer.losses.cispo import CISPO
from openmint_trainer.losses.cross_entropy import CROSS_ENTROPY
from openmint_trainer.losses.distillation import distillation_advantages, top_k_weights
from openmint_trainer.losses.dpo import DPO
from openmint_trainer.losses.dro import DRO
from openmint_trainer.losses.gspo import GSPO, GSPO_TOKEN
from openmint_trainer.losses.importance_sampling import IMPORTANCE_SAMPLING
from openmint_trainer.losses.inputs import LossInputs, LossOutputs
from openmint_trainer.losses.loss import NO_CONFIG, Loss
from openmint_trainer.losses.ppo import PPO

LOSSES: dict[str, Loss] = {
    loss.name: loss for loss in (CROSS_ENTROPY, IMPORTANCE_SAMPLING, PPO, CISPO, DRO, GSPO, GSPO_TOKEN, DPO)
}


def find_loss(name: str) -> Loss:
    """Raises: BadRequest naming the unknown loss and the known ones."""
    if name not in LOSSES:
        raise BadRequest(f"loss {name[:80]!r} is unknown; known are {', '.join(sorted(LOSSES))}", field="loss.name")
    return LOSSES[name]


__all__ = [
    "LOSSES",
    "NO_CONFIG",
    "Loss",
    "LossInputs",
    "LossOutputs",
    "distillation_advantages",
    "find_loss",
    "top_k_weights",
]
