"""Cheapest to lose: how often it is wanted times what it costs to bring back."""

from openmint_scheduler.eviction.contract import Candidate

ATTACH_COST_MS = 6.0
"""A gap between steps with a mapped file of 5 MB on two CPU cores."""

STAGE_COST_MS = 40.0
"""Fetch, verify and repack, before the first byte."""

STAGE_COST_MS_PER_MB = 8.0
"""Fetch, hash and repack, per 10^6 bytes."""

SURPLUS_SHARE = 1e-3
"""So little counts the demand for what answers elsewhere too: a hot revision's surplus copy goes before a rare one."""


def reload_cost_ms(candidate: Candidate) -> float:
    """What it would take to have it back."""
    if candidate.is_staged:
        return ATTACH_COST_MS
    return ATTACH_COST_MS + STAGE_COST_MS + STAGE_COST_MS_PER_MB * candidate.adapter_bytes / 1e6


def cheapest_to_lose(candidate: Candidate) -> float:
    """Demands a minute times what it costs to bring back, in ms a minute.

    Losing a copy beyond what is needed brings no load at all, only work for the others.
    """
    loss = candidate.demands_per_min * reload_cost_ms(candidate)
    return loss if candidate.copies == 1 else loss * SURPLUS_SHARE
