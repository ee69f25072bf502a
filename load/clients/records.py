"""What a client asks and what it saw. Times are `time.monotonic()` seconds."""

from dataclasses import dataclass
from typing import Protocol

from load.stack.policies import Policy

REFUSALS = frozenset({429, 503})
LATE_REFUSALS = frozenset({"overloaded", "load_timeout", "no_engine", "quota_exceeded"})
"""Codes of an error inside a stream that had begun with comments: a refusal that came late."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request for tokens, greedy and of exactly `max_tokens`."""

    policy: Policy
    prompt: str | tuple[int, ...]
    max_tokens: int
    stream: bool = True
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one call. A fault is in here, never raised."""

    call: Call
    scheduled_s: float
    """When the user wanted it; a client that was late counts against the server."""

    sent_s: float
    first_token_s: float | None
    ended_s: float
    token_s: tuple[float, ...]
    """When each piece of the answer came; a piece is one token unless the client was slow."""

    tokens: int
    status: int
    """Of HTTP; 0 when there was no answer at all."""

    retry_after_s: float | None = None
    revision: str = ""
    error: str = ""
    """Empty when the whole answer came, from the right revision."""

    engine: str = ""

    @property
    def is_answered(self) -> bool:
        """The whole answer came, from the right revision."""
        return not self.error and self.status == 200

    @property
    def is_refused(self) -> bool:
        """The server said that it would not, at once or within its stream."""
        return self.status in REFUSALS or (not self.is_answered and self.error.partition(":")[0] in LATE_REFUSALS)

    @property
    def is_fault(self) -> bool:
        """Neither answered nor refused."""
        return not self.is_answered and not self.is_refused

    @property
    def ttft_s(self) -> float | None:
        """From when it was wanted to the first token; None without one."""
        return None if self.first_token_s is None else self.first_token_s - self.scheduled_s

    @property
    def total_s(self) -> float:
        """From when it was wanted to the end."""
        return self.ended_s - self.scheduled_s

    @property
    def gaps_s(self) -> tuple[float, ...]:
        """Between pieces of the answer."""
        return tuple(after - before for before, after in zip(self.token_s, self.token_s[1:], strict=False))


class Target(Protocol):
    """Something that answers calls: openmint's gateway, or stock servers behind a router."""

    @property
    def name(self) -> str:
        """In reports."""
        ...

    async def ask(self, call: Call, scheduled_s: float | None = None) -> Outcome:
        """Send one call and read its whole answer."""
        ...
