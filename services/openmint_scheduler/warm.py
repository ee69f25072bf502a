"""Revisions that an alias move keeps warm for a while: the one it moved to, and the one a rollback returns to."""

from openmint_scheduler.ledger import EngineEntry

MAX_WARM = 10_000
"""Beyond it the oldest moves are forgotten; engines hold far fewer."""


class WarmBook:
    """Until when each revision is kept, in the order of the latest moves."""

    def __init__(self, warm_s: float, share: float) -> None:
        self._warm_s = warm_s
        self._share = share
        self._moved_s: dict[str, float] = {}

    def keep(self, digest: str, now_s: float) -> None:
        """Keep the revision warm from now on."""
        self._moved_s.pop(digest, None)
        self._moved_s[digest] = now_s
        while len(self._moved_s) > MAX_WARM:
            del self._moved_s[next(iter(self._moved_s))]

    def is_warm(self, digest: str, now_s: float) -> bool:
        """True within the grace time of a move."""
        moved_s = self._moved_s.get(digest)
        return moved_s is not None and now_s - moved_s < self._warm_s

    def kept_on(self, entry: EngineEntry, now_s: float) -> set[str]:
        """The residents that are not to be evicted for this reason: the latest moves, up to a share of the places."""
        if not self._moved_s:
            return set()
        warm = [digest for digest in entry.residents if self.is_warm(digest, now_s)]
        most = int(entry.capacity * self._share)
        warm.sort(key=lambda digest: (-self._moved_s[digest], digest))
        return set(warm[:most])
