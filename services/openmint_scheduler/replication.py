"""Hot revisions get further copies before their engines are full of them, and lose them when they have cooled down.

Two things make a revision hot: its own sequences fill HOT_SHARE of what its engines take in a step, or it is the
largest on an engine that is nearly full while others have time. It gets as many copies as bring it below HOT_SHARE,
one after the other. It stays hot for HOT_FOR_S, and until one copy less would leave it below COLD_SHARE, so that it is
not copied and dropped in turns; copies beyond what is wanted are the cheapest to evict.
"""

from math import ceil

from openmint.events.serving import SERVE_POOL
from openmint_scheduler.ledger import EngineEntry
from openmint_scheduler.load_queue import Load
from openmint_scheduler.messages import LoadKey
from openmint_scheduler.pool import LIKED_BY_HOT
from openmint_scheduler.state import REPLICATOR, Heat, SchedulerState

HOT_SHARE = 0.5
COLD_SHARE = 0.25

HOT_FOR_S = 30.0
"""A burst comes back within seconds. Shorter, and copies were dropped and made again; longer, and they fill places."""

FULL_SHARE = 0.85
"""An engine that runs so much of what a step takes is about to let requests wait."""

TIME_SHARE = 0.7
"""An engine that runs less than this has time for one more copy."""


def consider(state: SchedulerState, entry: EngineEntry, now_s: float) -> None:
    """Judge the residents of an engine that has just been looked at."""
    if not state.limits.replicates or SERVE_POOL not in entry.pools:
        return
    largest, most = "", 0
    for digest, resident in entry.residents.items():
        if resident.in_flight > most:
            largest, most = digest, resident.in_flight
        if resident.in_flight >= HOT_SHARE * entry.max_running:
            heat(state, digest, now_s)
        elif digest in state.hot:
            cool(state, digest, now_s)
    is_full = entry.running + entry.waiting >= FULL_SHARE * entry.max_running
    if is_full and (largest not in state.hot or most >= COLD_SHARE * entry.max_running) and largest:
        need(state, largest, state.ledger.copies(largest) + 1, now_s)


def heat(state: SchedulerState, digest: str, now_s: float) -> None:
    """Want as many copies as what is in flight needs; it may be waiting for more than is seen."""
    holders = state.ledger.serving(SERVE_POOL, digest)
    if not holders:
        return
    in_flight = sum(entry.residents[digest].in_flight for entry in holders)
    mean_room = sum(entry.max_running for entry in holders) / len(holders)
    need(state, digest, ceil(in_flight / (HOT_SHARE * mean_room)), now_s)


def need(state: SchedulerState, digest: str, copies: int, now_s: float) -> None:
    """The revision is hot and needs so many copies at least: begin the next one."""
    state.hot[digest] = Heat(max(state.copies_needed(digest), copies), now_s)
    replicate(state, digest, now_s)


def replicate(state: SchedulerState, digest: str, now_s: float) -> None:
    """Begin one more copy, if fewer are there than are wanted and some engine without one has time for it."""
    key = LoadKey(SERVE_POOL, digest)
    holders = state.ledger.serving(SERVE_POOL, digest)
    wanted = state.wanted.get(key)
    if wanted is None or key in state.loads or len(holders) >= state.copies_needed(digest):
        return
    held = frozenset(entry.engine for entry in holders)
    pool = state.pool(SERVE_POOL)
    found = pool.candidates(digest, LIKED_BY_HOT) if pool.open else []
    others = [entry for entry in found if entry.engine not in held]
    if not any(e.running + e.waiting < TIME_SHARE * e.max_running for e in others):
        return
    deadline_s = now_s + state.limits.prefetch_patience_s
    state.interest.renew(key, REPLICATOR, "prefetch", deadline_s, now_s, lapse_s=state.limits.prefetch_patience_s)
    load = Load(wanted, "prefetch", deadline_s, now_s, since_s=now_s, is_replica=True, avoid=held)
    state.loads[key] = load
    state.note("load.replicating", wanted, copies=len(holders))
    state.enqueue(load, now_s)


def cool(state: SchedulerState, digest: str, now_s: float) -> None:
    """Not hot any more when one copy less would do, and has done for a while."""
    if now_s - state.hot[digest].found_s < HOT_FOR_S:
        return
    holders = state.ledger.serving(SERVE_POOL, digest)
    busy = sum(entry.residents[digest].busy for entry in holders)
    room = sum(entry.max_running for entry in holders[:-1]) or (holders[0].max_running if holders else 1)
    if busy < COLD_SHARE * room:
        del state.hot[digest]
