"""Rendezvous hashing: a revision prefers the same engines in the same order, whichever others come and go."""

from functools import lru_cache
from hashlib import blake2b

from openmint_scheduler.ledger import EngineEntry


@lru_cache(maxsize=65_536)
def affinity(digest: str, engine: str) -> int:
    """How much this revision likes this engine: the largest wins. Equal in every process."""
    return int.from_bytes(blake2b(f"{digest}\0{engine}".encode(), digest_size=8).digest(), "big")


def rendezvous(digest: str, engines: list[EngineEntry]) -> EngineEntry:
    """The engine that the revision likes best, whatever it is busy with."""
    return max(engines, key=lambda entry: affinity(digest, entry.engine))
