"""Which engine a load goes to: strategies behind one function, chosen by name."""

from openmint_scheduler.placement.busyness import least_busy
from openmint_scheduler.placement.contract import Placement
from openmint_scheduler.placement.rendezvous import rendezvous
from openmint_scheduler.placement.warmth import warmest

PLACEMENTS: dict[str, Placement] = {"warmest": warmest, "rendezvous": rendezvous, "least_busy": least_busy}

__all__ = ["PLACEMENTS", "Placement"]
