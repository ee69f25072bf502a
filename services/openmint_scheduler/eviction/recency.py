"""Longest unused: the classic, to compare with."""

from openmint_scheduler.eviction.contract import Candidate


def longest_unused(candidates: list[Candidate]) -> Candidate:
    """The one that was last wanted longest ago."""
    return min(candidates, key=lambda c: (c.last_wanted_s, c.digest))
