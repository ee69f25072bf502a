"""Which resident makes room: strategies behind one function, chosen by name."""

from openmint_scheduler.eviction.cheapest import cheapest_to_lose
from openmint_scheduler.eviction.contract import Candidate, Eviction
from openmint_scheduler.eviction.recency import longest_unused

EVICTIONS: dict[str, Eviction] = {"cheapest_to_lose": cheapest_to_lose, "longest_unused": longest_unused}

__all__ = ["EVICTIONS", "Candidate", "Eviction"]
