"""Revisions that failed in a way that asking again won't change, remembered for a short while.

Nobody waits to hear it again, and what took engines down is not given to the next one at once.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a revision is not loaded now. `code` is one of openmint.errors."""

    code: str
    detail: str
    ends_s: float


class Refusals:
    """A bounded memory by digest."""

    def __init__(self, memory_s: float, most: int) -> None:
        self._memory_s = memory_s
        self._most = most
        self._refusals: dict[str, Refusal] = {}

    def remember(self, digest: str, code: str, detail: str, now_s: float) -> None:
        """The revision is not to be loaded for a while."""
        self._refusals.pop(digest, None)
        self._refusals[digest] = Refusal(code, detail, now_s + self._memory_s)
        while len(self._refusals) > self._most:
            del self._refusals[next(iter(self._refusals))]

    def find(self, digest: str, now_s: float) -> Refusal | None:
        """The refusal, while it is remembered."""
        refusal = self._refusals.get(digest)
        if refusal is not None and refusal.ends_s <= now_s:
            del self._refusals[digest]
            return None
        return refusal
