"""Longest unused: the classic, to compare with."""

from openmint_scheduler.eviction.contract import Candidate


def longest_unused(candidate: Candidate) -> float:
    """When it was last wanted: the longest ago goes first."""
    return candidate.last_wanted_s
