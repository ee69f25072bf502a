"""Losses by name. A new one goes into its own file and into LOSSES; the tests then pick it up."""

from openmint.errors import BadRequest
from openmint_trainer.losses.cross_entropy import cross_entropy
from openmint_trainer.losses.inputs import Loss, LossInputs, LossOutputs
from openmint_trainer.losses.policy_gradient import cispo, importance_sampling, ppo

LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "importance_sampling": importance_sampling,
    "ppo": ppo,
    "cispo": cispo,
}


def find_loss(name: str) -> Loss:
    """Raises: BadRequest naming the unknown loss and the known ones."""
    if name not in LOSSES:
        raise BadRequest(f"loss {name[:80]!r} is unknown; known are {', '.join(sorted(LOSSES))}", field="loss")
    return LOSSES[name]


__all__ = ["LOSSES", "Loss", "LossInputs", "LossOutputs", "find_loss"]
