"""The engines of one pool: which of them are open to loads, and which of them a revision likes.

A thousand engines must not make a decision dearer than ten do: a choice looks at a few engines that the revision finds
on a ring of hashes (so that it comes back to where its copies are), never at all of them.
"""

from bisect import bisect_right
from hashlib import blake2b

from openmint_scheduler.ledger import EngineEntry

POINTS_PER_ENGINE = 32
"""On the ring: which engines a revision finds then depends little on where single points fell."""

EXACT_UP_TO = 32
"""With so few open engines all of them are compared."""

LIKED = 4
"""Engines that a revision finds on the ring. The least busy of four is within a few loads of the least busy of all."""

LIKED_BY_HOT = 24
"""The same for one more copy of a hot revision: many of those that it likes most hold it already, or are busy."""

MAX_STEPS = 96
"""Points that one search passes."""

MIXER, MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1
"""An odd number near 2^64 divided by the golden ratio: multiplying by it spreads neighbouring numbers."""


def point_of(text: str) -> int:
    """Where something lies on the ring, equal in every process."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def affinity(revision: int, engine: int) -> int:
    """How much a revision likes an engine, of their points: the largest wins (rendezvous hashing)."""
    mixed = (revision ^ engine) * MIXER & MASK
    return (mixed ^ mixed >> 32) * MIXER & MASK


class Pool:
    """The engines of one pool."""

    def __init__(self) -> None:
        self.engines: dict[str, EngineEntry] = {}
        self.open: dict[str, EngineEntry] = {}
        """Usable, with room for one load more, as last judged."""
        self.max_rank = 0
        self.least_rank = 0
        self.looked_around_s = float("-inf")
        self._points: dict[str, int] = {}
        self._ring: list[int] = []
        self._owners: list[EngineEntry] = []
        """Whose point each one of the ring is."""

    def put(self, entry: EngineEntry) -> None:
        """An engine is in the pool, for the first time or in another boot."""
        if entry.engine not in self.engines:
            self._points[entry.engine] = point_of(entry.engine)
            for number in range(POINTS_PER_ENGINE):
                point = point_of(f"{entry.engine}#{number}")
                place = bisect_right(self._ring, point)
                self._ring.insert(place, point)
                self._owners.insert(place, entry)
        else:
            former = self.engines[entry.engine]
            self._owners = [entry if owner is former else owner for owner in self._owners]
        self.engines[entry.engine] = entry
        self.open.pop(entry.engine, None)
        self._weigh_ranks()

    def drop(self, engine: str) -> None:
        """The engine is not in the pool any more."""
        if self.engines.pop(engine, None) is not None:
            self.open.pop(engine, None)
            del self._points[engine]
            left = [place for place, owner in enumerate(self._owners) if owner.engine != engine]
            self._ring = [self._ring[place] for place in left]
            self._owners = [self._owners[place] for place in left]
            self._weigh_ranks()

    def _weigh_ranks(self) -> None:
        ranks = [entry.max_rank for entry in self.engines.values()]
        self.max_rank, self.least_rank = max(ranks, default=0), min(ranks, default=0)

    def judge(self, entry: EngineEntry, is_open: bool) -> None:
        """Keep an engine among the open ones, or take it out."""
        entry.is_open = is_open
        if is_open:
            self.open[entry.engine] = entry
        else:
            self.open.pop(entry.engine, None)

    def candidates(self, digest: str, most: int = LIKED) -> list[EngineEntry]:
        """Open engines worth comparing for a revision: all of a small pool, of a large one the first that it likes.

        In the order in which it likes them.
        """
        place = point_of(digest)
        if len(self.open) <= EXACT_UP_TO:
            points = self._points
            return sorted(self.open.values(), key=lambda entry: -affinity(place, points[entry.engine]))
        start = bisect_right(self._ring, place)
        owners = self._owners[start : start + MAX_STEPS]
        if len(owners) < MAX_STEPS:
            owners += self._owners[: MAX_STEPS - len(owners)]
        found: list[EngineEntry] = []
        for owner in owners:
            if owner.is_open and owner not in found:
                found.append(owner)
                if len(found) == most:
                    break
        return found or [next(iter(self.open.values()))]
