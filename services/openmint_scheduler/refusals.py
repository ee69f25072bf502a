"""Revisions that were found bad, remembered for a short while so that nobody waits to hear it again."""


class Refusals:
    """A bounded memory of reasons by digest."""

    def __init__(self, memory_s: float, most: int) -> None:
        self._memory_s = memory_s
        self._most = most
        self._reasons: dict[str, tuple[float, str]] = {}

    def remember(self, digest: str, reason: str, now_s: float) -> None:
        """The revision must not be loaded, for this reason."""
        self._reasons.pop(digest, None)
        self._reasons[digest] = (now_s, reason)
        while len(self._reasons) > self._most:
            del self._reasons[next(iter(self._reasons))]

    def find(self, digest: str, now_s: float) -> str | None:
        """The reason, while it is remembered."""
        at_s, reason = self._reasons.get(digest, (0.0, ""))
        if digest not in self._reasons:
            return None
        if now_s - at_s > self._memory_s:
            del self._reasons[digest]
            return None
        return reason
