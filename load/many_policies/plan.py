"""Which rows a run has, in which order, and which bounds they must meet. All of it is fixed before the run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from load.many_policies.rows import RowBook, row_key

POLICIES = 2048
ENGINES = 2
TENANTS = 8
CALIBRATION_CLIENTS = 36
CALIBRATION_S = 20.0
CLOSED_CLIENTS = 230
PAUSE_AFTER_REFUSAL_S = 2.0

Rule = Literal["ours", "round-robin", "hash", "loaded"]
Arriving = Literal["clients", "burst", "closed"]

PEERS: tuple[Rule, ...] = ("round-robin", "hash", "loaded")
CAPS = (40, 80, 120)
"""Requests in flight over both engines. 32 run at once; 80 was the best of an earlier search."""

DEADLINE_S = 10.0
"""The longest wait for a first token that ours is told of: the longer of the two bounds."""

SETTINGS = {"OPENMINT_WAIT_DEADLINE_S": f"{DEADLINE_S:g}"}

SWITCHES: dict[str, dict[str, str]] = {
    "early-verdict": {"OPENMINT_EARLY_VERDICT": "false"},
    "grouping": {"OPENMINT_COHERENT_ADAPTERS": "0"},
    "adapter-turns": {"OPENMINT_ADAPTER_TURNS": "false"},
    "deadline-order": {"OPENMINT_DEADLINE_ORDER": "false"},
    "warm-placement": {"OPENMINT_PLACEMENT": "least_busy"},
    "costed-eviction": {"OPENMINT_EVICTION": "longest_unused"},
    "fair-loads": {"OPENMINT_ORDERING": "arrival"},
    "copies": {"OPENMINT_REPLICATES": "false"},
    "load-budget": {"OPENMINT_ATTACH_SHARE": "1"},
}
"""Parts of ours that are switched off in turn, each by settings of the services."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Who answers: ours (whole, or with a part switched off), or a peer's rule with or without a cap."""

    rule: Rule
    cap: int | None = None
    without: str = ""

    @property
    def name(self) -> str:
        """The name in tables and keys."""
        if self.without:
            return f"ours-without-{self.without}"
        return f"{self.rule}+cap{self.cap}" if self.cap else self.rule


@dataclass(frozen=True, slots=True)
class Load:
    """What arrives: `times` the measured capacity from outside, or so many clients that wait for their answers."""

    name: str
    arriving: Arriving
    times: float = 0.0


LIGHT = Load("0.75x", "clients", 0.75)
HEAVY = Load("1.25x", "clients", 1.25)
BURST = Load("1.25x-burst", "burst", 1.25)
CLOSED = Load(str(CLOSED_CLIENTS), "closed")

REFUSING = (HEAVY, CLOSED)
"""The loads that are more than can be answered in time: here a cap is of use."""

OURS = Contender("ours")


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """One row to run."""

    base: str
    load: Load
    contender: Contender
    seed: int

    @property
    def key(self) -> str:
        """As the finished row's."""
        return row_key(self.base, self.load.name, self.contender.name, self.seed)


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is run."""

    seeds: tuple[int, ...]
    window_s: float
    caps: tuple[int, ...]
    peers: tuple[Rule, ...]
    loads: tuple[Load, ...]
    switches: tuple[str, ...]


def extent(*, is_quick: bool, seed: int) -> Extent:
    """Three seeds and everything; or one seed, one load and the two peers that are the strongest."""
    if is_quick:
        return Extent((seed,), 25.0, (80,), ("round-robin", "loaded"), (HEAVY,), ())
    return Extent((seed, seed + 1, seed + 2), 45.0, CAPS, PEERS, (LIGHT, HEAVY, CLOSED, BURST), tuple(SWITCHES))


def planned_rows(base: str, wanted: Extent, book: RowBook) -> Iterator[PlannedRow]:
    """Contenders alternate within a load and a seed, so that they meet the same noise; parts switched off come last,
    because each needs services of its own.

    Caps are raced where there is something to refuse: all of them with the first seed, then each peer's best. So a
    row must be in `book` before the next is taken, unless it is not to be run at all.
    """
    for seed in wanted.seeds:
        for load in wanted.loads:
            yield PlannedRow(base, load, OURS, seed)
            for peer in wanted.peers:
                yield PlannedRow(base, load, Contender(peer), seed)
                if load in REFUSING:
                    caps = wanted.caps if seed == wanted.seeds[0] else best_caps(base, load, peer, wanted, book)
                    yield from (PlannedRow(base, load, Contender(peer, cap), seed) for cap in caps)
    for without in wanted.switches:
        for load in REFUSING:
            yield PlannedRow(base, load, Contender("ours", without=without), wanted.seeds[0])


def best_caps(base: str, load: Load, peer: Rule, wanted: Extent, book: RowBook) -> list[int]:
    """The caps with which a peer did best with the first seed, at 5 s and at 10 s: one or two."""
    found = {cap: book.find(base, load.name, Contender(peer, cap).name, wanted.seeds[0]) for cap in wanted.caps}
    rows = {cap: row for cap, row in found.items() if row is not None}
    if not rows:
        return []
    best = {max(rows, key=lambda cap: rows[cap].goodput_5_rps), max(rows, key=lambda cap: rows[cap].goodput_10_rps)}
    return sorted(best)
