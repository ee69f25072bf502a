"""Who is under suspicion, and which engines were sent to restart for it: values only, the verbs are in `suspects`."""

from dataclasses import dataclass, field
from uuid import UUID


@dataclass(slots=True)
class Held:
    """A revision that is loaded nowhere until it was probed alone."""

    since_s: float
    engines: set[str] = field(default_factory=set[str])
    """Engines that it may have spoiled and that have not examined it yet."""

    failures: int = 0
    """Probes alone that gave no number."""

    unlearnt: int = 0
    """Examinations that came to nothing."""


class SuspectBook:
    """All suspicions of one base."""

    def __init__(self) -> None:
        self.held: dict[str, Held] = {}
        self.examining: dict[str, str] = {}
        """Engine to the revision that it is asked to examine."""
        self.settled: dict[tuple[str, str], float] = {}
        """(engine, revision) to when it was examined there: an older heartbeat may still name it."""
        self.asked: dict[str, tuple[UUID, float]] = {}
        """Engine to the boot that was asked to end, and when."""
        self.restarts: dict[str, list[float]] = {}
        self.given_up: set[UUID] = set()
        """Boots that are left as they are: restarting has not helped."""

    def is_held(self, digest: str) -> bool:
        """True while the revision must not be loaded."""
        return digest in self.held

    def pending(self, engine: str) -> list[str]:
        """What an engine is to examine, longest suspected first."""
        return sorted(
            (digest for digest, held in self.held.items() if engine in held.engines),
            key=lambda digest: (self.held[digest].since_s, digest),
        )
