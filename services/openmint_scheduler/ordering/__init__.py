"""In which order the loads of a pool get an engine: strategies by name."""

from openmint_scheduler.ordering.contract import Ordering
from openmint_scheduler.ordering.strategies import ARRIVAL, DEADLINE, FAIR

ORDERINGS: dict[str, Ordering] = {"fair": FAIR, "deadline": DEADLINE, "arrival": ARRIVAL}

__all__ = ["ORDERINGS", "Ordering"]
