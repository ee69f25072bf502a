"""Cheapest to lose: how often it is wanted times what it costs to bring back."""

from openmint_scheduler.eviction.contract import Candidate

ATTACH_COST_MS = 6.0
"""A gap between steps with a mapped file of 5 MB on two CPU cores."""

STAGE_COST_MS = 40.0
"""Fetch, verify and repack, before the first byte."""

STAGE_COST_MS_PER_MB = 8.0
"""Fetch, hash and repack, per 10^6 bytes."""


def reload_cost_ms(candidate: Candidate) -> float:
    """What it would take to have it back."""
    if candidate.is_staged:
        return ATTACH_COST_MS
    return ATTACH_COST_MS + STAGE_COST_MS + STAGE_COST_MS_PER_MB * candidate.adapter_bytes / 1e6


def cheapest_to_lose(candidate: Candidate) -> float:
    """Demands a minute times what it costs to bring back, in ms a minute.

    Of something that answers elsewhere too, only the share of the demand that came here has to move.
    """
    return candidate.demands_per_min * reload_cost_ms(candidate) / candidate.copies**2
