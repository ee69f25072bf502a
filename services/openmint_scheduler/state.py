"""All that the core knows, in one place, and the few verbs that every part of it uses.

The parts are plain functions over this state: `wants` takes in demand, `reports` what engines say, `outcomes` how
commands ended, `endings` closes loads, `progress` moves them on. `core` is the door.
"""

from typing import NamedTuple

from openmint_scheduler.demand import DemandMeter
from openmint_scheduler.eviction import EVICTIONS
from openmint_scheduler.interest import InterestBook
from openmint_scheduler.ledger import EngineEntry, ResidencyLedger
from openmint_scheduler.limits import Limits
from openmint_scheduler.load_queue import Load, LoadQueue
from openmint_scheduler.messages import (
    Attach,
    Command,
    Examine,
    FetchState,
    LoadKey,
    Noted,
    Remove,
    Restart,
    Stage,
    Unstage,
    Wanted,
)
from openmint_scheduler.ordering import ORDERINGS
from openmint_scheduler.pace import Pace
from openmint_scheduler.placement import PLACEMENTS
from openmint_scheduler.pool import Pool
from openmint_scheduler.refusals import Refusals
from openmint_scheduler.rhythm import RhythmBook
from openmint_scheduler.room import RoomMaker
from openmint_scheduler.suspect_book import SuspectBook
from openmint_scheduler.warm import WarmBook

PREFETCHER = "prefetch"
"""The waiter in whose name the core itself wants a load."""

REPLICATOR = "replica"
"""The waiter in whose name the core wants one more copy."""

HELD_LOOK_S = 1.0
"""A load of a suspected revision rests, and is looked at again so often until the suspicion is settled."""


class Heat(NamedTuple):
    """How many copies a hot revision needs, and when it was last found hot."""

    copies: int
    found_s: float


InFlight = Stage | Attach | Remove | FetchState | Restart | Examine
"""Commands whose end is told."""


class SchedulerState:
    """Everything that one base model's scheduler knows. `loads` has every load that is not yet answered; those in
    phase `waiting` stand in their pool's queue, or rest until they are tried again."""

    def __init__(self, limits: Limits, placement: str, eviction: str, ordering: str) -> None:
        self.limits = limits
        self.ledger = ResidencyLedger()
        self.pools: dict[str, Pool] = {}
        self.touched: dict[str, EngineEntry] = {}
        """Engines about which something has changed since the last pump: only these are thought about."""
        self.restless: set[str] = set()
        """Pools in whose queue or engines something has changed since nothing could be placed."""
        self.interest = InterestBook(limits.lapse_s)
        self.wanted: dict[LoadKey, Wanted] = {}
        self.loads: dict[LoadKey, Load] = {}
        self.queues: dict[str, LoadQueue] = {}
        self.resting: dict[LoadKey, Load] = {}
        self.paces: dict[str, Pace] = {}
        self.demand = DemandMeter(limits.demand_half_life_s)
        self.only_evaluated: dict[str, float] = {}
        """Revisions that only an evaluation has asked for, and when it last held them: nobody answers with them."""
        self.warm = WarmBook(limits.warm_s, limits.warm_share)
        self.rhythms = RhythmBook()
        self.expected: list[tuple[float, LoadKey]] = []
        """A heap of when revisions with a rhythm are to be loaded."""
        self.alias_versions: dict[str, int] = {}
        self.refusals = Refusals(limits.refusal_memory_s, limits.refusal_memory)
        self.suspects = SuspectBook()
        self.hot: dict[str, Heat] = {}
        """Revisions that need more than one copy."""
        self.room = RoomMaker(self, EVICTIONS[eviction])
        self.ordering = ORDERINGS[ordering]
        self.choose_engine = PLACEMENTS[placement]
        self.sent: dict[int, InFlight] = {}
        self.last_command = 0
        self.out: list[Command] = []

    def queue(self, pool: str) -> LoadQueue:
        """The queue of a pool."""
        if pool not in self.queues:
            self.queues[pool] = LoadQueue(self.limits, self.ordering)
        return self.queues[pool]

    def pool(self, name: str) -> Pool:
        """The engines of a pool."""
        found = self.pools.get(name)
        if found is None:
            found = self.pools[name] = Pool()
        return found

    def touch(self, entry: EngineEntry) -> None:
        """Have the pump think about an engine."""
        self.touched[entry.engine] = entry

    def reopen(self, digest: str) -> None:
        """Somebody has let go of a revision: it may make room where it is."""
        for entry in self.ledger.holders(digest):
            entry.evictable_s = None
            self.touch(entry)

    def enqueue(self, load: Load, now_s: float) -> None:
        """Let a load wait for an engine; one of a suspected revision rests instead."""
        if self.suspects.is_held(load.wanted.key.digest):
            load.not_before_s = now_s + HELD_LOOK_S
            self.resting[load.wanted.key] = load
            return
        self.queue(load.wanted.key.pool).push(load, now_s)
        self.restless.add(load.wanted.key.pool)

    def pace(self, pool: str) -> Pace:
        """How fast a pool's queue moves."""
        return self.paces.setdefault(pool, Pace())

    def next_command(self) -> int:
        """A number that no command had yet."""
        self.last_command += 1
        return self.last_command

    def send(self, command: InFlight | Unstage) -> None:
        """Have a command carried out."""
        if not isinstance(command, Unstage):  # Whether it succeeded changes nothing; the next look tells.
            self.sent[command.command] = command
        self.out.append(command)

    def note(self, happening: str, wanted: Wanted, **fields: str | float) -> None:
        """Have something written down about a revision."""
        about: dict[str, str | int | float | bool] = {
            "pool": wanted.key.pool, "revision": wanted.key.digest, "tenant": wanted.tenant, "policy": wanted.label
        }  # fmt: skip
        self.out.append(Noted(happening, about | fields))

    def assigned_load(self, entry: EngineEntry, digest: str) -> Load | None:
        """The load that is on its way to this engine, if there is one for the revision."""
        key = entry.assigned.get(digest)
        return self.loads.get(key) if key is not None else None

    def copies_needed(self, digest: str) -> int:
        """How many engines should hold a revision that any of them holds."""
        heat = self.hot.get(digest)
        return heat.copies if heat is not None else 1

    def is_awaited(self, entry: EngineEntry, digest: str) -> bool:
        """True when a load or a lease of one of the engine's pools is about the revision."""
        return self.is_held_on(entry, digest) or any((pool, digest) in self.loads for pool in entry.pools)

    def is_held_on(self, entry: EngineEntry, digest: str) -> bool:
        """True while anybody waits for the revision, or uses it, in one of the engine's pools."""
        return self.interest.is_held_in(entry.pools, digest)
