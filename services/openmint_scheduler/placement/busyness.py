"""Least busy: even load, and no memory of where a revision was."""

from openmint_scheduler.ledger import EngineEntry


def least_busy(digest: str, engines: list[EngineEntry]) -> EngineEntry:
    """The engine with the fewest loads on their way and requests running or waiting."""
    return min(engines, key=lambda entry: len(entry.assigned) + entry.running + entry.waiting)
