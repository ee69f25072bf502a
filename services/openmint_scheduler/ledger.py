"""What is where: engines as they report themselves, corrected only by what is newer than the report.

A look at an engine overrules an entry unless the entry comes from a command that the engine had not applied at that
look, or was confirmed after the look was asked for.
"""

from dataclasses import dataclass, field
from uuid import UUID

from openmint.engines.protocol import EngineCondition, EngineState, Resident
from openmint_scheduler.messages import EngineBeat, LoadKey

BUSY_SMOOTHING = 0.3
"""Of the newest look: a burst of a second does not make a revision hot, three looks do."""


BUSY_STEPS = 4
"""Running requests count in quarters of what the engine may run, so that small swings don't scatter revisions."""


@dataclass(slots=True)
class ResidentEntry:
    """An adapter on an engine, with the command that put it there (0: it was found there)."""

    adapter_name: str
    adapter_bytes: int
    in_flight: int
    command: int
    confirmed_s: float
    attached_s: float
    not_before_s: float = 0.0
    served: int = 0
    """Requests that the engine had admitted to it at the last look."""
    busy: float = 0.0
    """Sequences in flight, smoothed over looks."""
    loss: float = 0.0
    """What its eviction would cost, as the eviction strategy saw it at the last look."""


@dataclass(slots=True)
class StagedEntry:
    """A staged copy on an engine's machine."""

    confirmed_s: float
    used_s: float


@dataclass(slots=True)
class RemovedEntry:
    """An adapter taken off by this command: an older look that still lists it is not believed."""

    command: int
    confirmed_s: float


@dataclass(slots=True, eq=False)
class EngineEntry:
    """One engine in one boot."""

    engine: str
    boot_id: UUID
    pools: tuple[str, ...]
    condition: EngineCondition
    capacity: int
    max_rank: int
    seen_s: float
    max_running: int = 1
    running: int = 0
    waiting: int = 0
    list_version: int = -1
    last_command: int = 0
    looked_s: float | None = None
    look_asked_s: float | None = None
    residents: dict[str, ResidentEntry] = field(default_factory=dict[str, ResidentEntry])
    staged: dict[str, StagedEntry] = field(default_factory=dict[str, StagedEntry])
    removed: dict[str, RemovedEntry] = field(default_factory=dict[str, RemovedEntry])
    staging: dict[str, int] = field(default_factory=dict[str, int])
    removing: dict[str, int] = field(default_factory=dict[str, int])
    attaching: tuple[str, ...] = ()
    assigned: dict[str, LoadKey] = field(default_factory=dict[str, LoadKey])
    coming: int = 0
    """Of `assigned`, those that are not resident: places promised."""
    is_open: bool = False
    """Usable, with room for one load more, as last judged."""
    free: int = 0
    """Places that nobody has been promised; below zero when loads were promised places of residents."""
    burden: int = 0
    """Loads on their way and, in quarters of what a step takes, requests."""
    attach_s: float = 0.0
    """What one attach takes, smoothed over batches."""
    cheapest: float = 0.0
    """The smallest loss that an eviction here costs, as of the last look or eviction."""
    paused_until_s: float = 0.0
    """No attach before: its running streams have their turn."""
    evictable: int = 0
    """Residents that may go, counted no further than was needed."""
    evictable_s: float | None = None
    """When `evictable` was counted; None when something has changed since."""
    is_examining: bool = False
    """It has suspects to probe alone first."""

    @property
    def is_usable(self) -> bool:
        """Ready, we have looked at it in this boot, and it has no suspect to examine."""
        return self.condition == "ready" and self.looked_s is not None and not self.is_examining

    @property
    def occupied(self) -> int:
        """Places that are taken: residents (also those on their way out) and a batch on its way in."""
        return len(self.residents) + sum(digest not in self.residents for digest in self.attaching)

    def assign(self, digest: str, key: LoadKey) -> None:
        """Promise a load a place."""
        if digest not in self.assigned and digest not in self.residents:
            self.coming += 1
        self.assigned[digest] = key
        self.evictable_s = None
        self.weigh()

    def unassign(self, digest: str) -> None:
        """Take the promise back."""
        if self.assigned.pop(digest, None) is not None and digest not in self.residents:
            self.coming -= 1
        self.evictable_s = None
        self.weigh()

    def weigh(self) -> None:
        """Bring `free` and `burden` up to date."""
        self.free = self.capacity - len(self.residents) - self.coming
        self.burden = len(self.assigned) + BUSY_STEPS * (self.running + self.waiting) // self.max_running

    def serves(self, digest: str) -> bool:
        """True when requests for the revision may go to this engine."""
        return self.is_usable and digest in self.residents and digest not in self.removing


class ResidencyLedger:
    """All engines of one base, and where each revision is, resident or staged."""

    def __init__(self) -> None:
        self.engines: dict[str, EngineEntry] = {}
        self._holders: dict[str, set[str]] = {}
        self._stagers: dict[str, set[str]] = {}

    def beat(self, beat: EngineBeat, now_s: float) -> EngineEntry | None:
        """Take in a heartbeat; returns the former entry when this is another boot of a known engine."""
        former = self.engines.get(beat.engine)
        if former is None or former.boot_id != beat.boot_id:
            if former is not None:
                self.forget(former.engine)
            self.engines[beat.engine] = EngineEntry(
                beat.engine, beat.boot_id, beat.pools, beat.condition, beat.capacity, beat.max_rank, now_s
            )
        else:
            former = None
        entry = self.engines[beat.engine]
        entry.pools, entry.condition, entry.capacity, entry.max_rank = (
            beat.pools, beat.condition, beat.capacity, beat.max_rank,
        )  # fmt: skip
        entry.running, entry.waiting, entry.seen_s = beat.running, beat.waiting, now_s
        entry.max_running = beat.max_running or entry.max_running
        entry.weigh()
        entry.last_command = max(entry.last_command, beat.last_command)
        return former

    def look(self, state: EngineState, asked_s: float, now_s: float) -> list[str]:
        """Take in a look at an engine; returns the revisions that we thought resident and that are not."""
        entry = self.engines[state.engine]
        entry.looked_s, entry.look_asked_s, entry.list_version = now_s, None, state.list_version
        entry.last_command = max(entry.last_command, state.last_command)
        entry.running, entry.waiting, entry.max_running = state.running, state.waiting, max(1, state.max_running)
        entry.weigh()
        entry.removed = {
            digest: gone
            for digest, gone in entry.removed.items()
            if gone.command > state.last_command or gone.confirmed_s >= asked_s
        }
        listed = {resident.digest: resident for resident in state.residents}
        for digest, resident in listed.items():
            self._look_at(entry, digest, resident, now_s)
        lost = [
            digest
            for digest, known in entry.residents.items()
            if digest not in listed and known.command <= state.last_command and known.confirmed_s < asked_s
        ]
        for digest in lost:
            self.gone(entry, digest)
        staged = set(state.staged)
        for digest in state.staged:
            if digest not in entry.staged:
                self.staged(entry, digest, now_s)
        for digest, copy in list(entry.staged.items()):
            if digest not in staged and copy.confirmed_s < asked_s:
                self.unstaged(entry, digest)
        entry.evictable_s = None
        return lost

    def _look_at(self, entry: EngineEntry, digest: str, resident: Resident, now_s: float) -> None:
        known = entry.residents.get(digest)
        if known is not None:
            known.in_flight, known.adapter_name = resident.in_flight, resident.adapter_name
            known.adapter_bytes = resident.adapter_bytes
            known.busy += BUSY_SMOOTHING * (resident.in_flight - known.busy)
        elif digest not in entry.removed:
            self.resident(entry, digest, resident.adapter_name, resident.adapter_bytes, 0, now_s)
            entry.residents[digest].in_flight = resident.in_flight

    def resident(
        self, entry: EngineEntry, digest: str, adapter_name: str, adapter_bytes: int, command: int, now_s: float
    ) -> None:
        """The revision is on the engine."""
        if digest in entry.assigned and digest not in entry.residents:
            entry.coming -= 1
        entry.evictable_s = None
        entry.residents[digest] = ResidentEntry(adapter_name, adapter_bytes, 0, command, now_s, now_s)
        entry.weigh()
        entry.removed.pop(digest, None)
        self._holders.setdefault(digest, set()).add(entry.engine)

    def gone(self, entry: EngineEntry, digest: str, command: int = 0, now_s: float = 0.0) -> None:
        """The revision is off the engine; with a `command`, because of it."""
        if entry.residents.pop(digest, None) is None:
            return
        if digest in entry.assigned:
            entry.coming += 1
        entry.weigh()
        entry.evictable_s = None
        if command:
            entry.removed[digest] = RemovedEntry(command, now_s)
        _leave(self._holders, digest, entry.engine)

    def forget(self, engine: str) -> EngineEntry | None:
        """Drop an engine with all that it held."""
        entry = self.engines.pop(engine, None)
        if entry is not None:
            for digest in entry.residents:
                _leave(self._holders, digest, engine)
            for digest in entry.staged:
                _leave(self._stagers, digest, engine)
        return entry

    def staged(self, entry: EngineEntry, digest: str, now_s: float) -> None:
        """A copy lies on the engine's machine."""
        entry.staged[digest] = StagedEntry(now_s, now_s)
        self._stagers.setdefault(digest, set()).add(entry.engine)

    def unstaged(self, entry: EngineEntry, digest: str) -> None:
        """The copy is gone."""
        if entry.staged.pop(digest, None) is not None:
            _leave(self._stagers, digest, entry.engine)

    def with_copy(self, pool: str, digest: str) -> list[EngineEntry]:
        """The engines of a pool on whose machine a copy lies."""
        stagers = self._stagers.get(digest)
        if not stagers:
            return []
        return [entry for entry in map(self.engines.__getitem__, sorted(stagers)) if pool in entry.pools]

    def copies(self, digest: str) -> int:
        """How many engines hold a revision."""
        return len(self._holders.get(digest, ()))

    def holders(self, digest: str) -> list[EngineEntry]:
        """The engines that hold a revision, in whatever condition they are."""
        return [self.engines[engine] for engine in sorted(self._holders.get(digest, ()))]

    def serving(self, pool: str, digest: str) -> list[EngineEntry]:
        """The engines of a pool that answer with this revision."""
        if digest not in self._holders:
            return []
        return [entry for entry in self.holders(digest) if pool in entry.pools and entry.serves(digest)]


def _leave(places: dict[str, set[str]], digest: str, engine: str) -> None:
    engines = places[digest]
    engines.discard(engine)
    if not engines:
        del places[digest]
