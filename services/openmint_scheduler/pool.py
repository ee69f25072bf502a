"""The engines of one pool: which of them are open to loads, and which of them a revision likes.

A thousand engines must not make a decision dearer than ten do: a choice looks at a few engines that the revision finds
on a ring of hashes (so that it comes back to where its copies are), never at all of them.
"""

from bisect import bisect_right, insort
from functools import lru_cache
from hashlib import blake2b

from openmint_scheduler.ledger import EngineEntry

POINTS_PER_ENGINE = 64
"""On the ring; the largest arc is then some 30 % above the mean."""

EXACT_UP_TO = 32
"""With so few open engines all of them are compared."""

LIKED = 8
"""Engines that a revision finds on the ring. The least busy of eight is within a few loads of the least busy of all."""

MAX_STEPS = 64
"""Points that one search passes."""

Point = tuple[int, str]


def point_of(text: str) -> int:
    """Where something lies on the ring, equal in every process."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


@lru_cache(maxsize=65_536)
def affinity(digest: str, engine: str) -> int:
    """How much this revision likes this engine: the largest wins."""
    return point_of(f"{digest}\0{engine}")


class Pool:
    """The engines of one pool."""

    def __init__(self) -> None:
        self.engines: dict[str, EngineEntry] = {}
        self.open: dict[str, EngineEntry] = {}
        """Usable, with room for one load more, as last judged."""
        self.max_rank = 0
        self.looked_around_s = float("-inf")
        self._ring: list[Point] = []

    def put(self, entry: EngineEntry) -> None:
        """An engine is in the pool, for the first time or in another boot."""
        if entry.engine not in self.engines:
            for number in range(POINTS_PER_ENGINE):
                insort(self._ring, (point_of(f"{entry.engine}#{number}"), entry.engine))
        self.engines[entry.engine] = entry
        self.open.pop(entry.engine, None)
        self.max_rank = max(each.max_rank for each in self.engines.values())

    def drop(self, engine: str) -> None:
        """The engine is not in the pool any more."""
        if self.engines.pop(engine, None) is not None:
            self.open.pop(engine, None)
            self._ring = [point for point in self._ring if point[1] != engine]
            self.max_rank = max((each.max_rank for each in self.engines.values()), default=0)

    def judge(self, entry: EngineEntry, is_open: bool) -> None:
        """Keep an engine among the open ones, or take it out."""
        if is_open:
            self.open[entry.engine] = entry
        else:
            self.open.pop(entry.engine, None)

    def candidates(self, digest: str) -> list[EngineEntry]:
        """Open engines worth comparing for a revision: all of a small pool, of a large one those it likes."""
        if len(self.open) <= EXACT_UP_TO:
            return list(self.open.values())
        found: dict[str, EngineEntry] = {}
        start = bisect_right(self._ring, (point_of(digest), ""))
        for step in range(MAX_STEPS):
            engine = self._ring[(start + step) % len(self._ring)][1]
            entry = self.open.get(engine)
            if entry is not None:
                found[engine] = entry
                if len(found) == LIKED:
                    break
        return list(found.values()) or [next(iter(self.open.values()))]
