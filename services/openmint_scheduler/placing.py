"""Which engine gets a load: when it comes, and when an engine opens while others wait."""

from itertools import islice

from openmint_scheduler.ledger import EngineEntry
from openmint_scheduler.load_queue import Load, LoadQueue
from openmint_scheduler.looks import ask_look, is_look_old
from openmint_scheduler.messages import Stage
from openmint_scheduler.pool import LIKED, LIKED_BY_HOT, Pool
from openmint_scheduler.state import SchedulerState

MAX_MISSES = 16
"""Loads that are looked at in one pump without finding a place, before the pump gives up on the pool."""

MAX_LOOKS = 16
"""Full engines that are looked at again in one go, for something that has become idle."""


def place_at_once(state: SchedulerState, load: Load, now_s: float) -> bool:
    """Give a load that has just come to an engine, when nobody waits before it; False when it must wait."""
    name = load.wanted.key.pool
    pool = state.pool(name)
    if not pool.open or state.queue(name) or load.wanted.rank > pool.max_rank:
        return False
    if state.suspects.is_held(load.wanted.key.digest):
        return False
    entry = choose(state, load, pool, now_s)
    if entry is None:
        return False
    state.queue(name).charge(load.wanted.tenant)
    assign(state, load, entry, now_s)
    return True


def place_waiting(state: SchedulerState, name: str, queue: LoadQueue, now_s: float) -> None:
    """Give the loads of one pool to engines, in their order, as long as any engine can take one."""
    pool = state.pool(name)
    missed: list[Load] = []
    while queue and len(missed) < MAX_MISSES:
        if not pool.open and (missed or not may_have_copies(state, name, queue)):
            break
        load = queue.pop()
        if load is None:
            break
        entry = choose(state, load, pool, now_s)
        if entry is None:
            missed.append(load)
            continue
        assign(state, load, entry, now_s)
    for load in reversed(missed):
        queue.give_back(load, now_s)
    if queue:
        look_around(state, pool, now_s)


def may_have_copies(state: SchedulerState, name: str, queue: LoadQueue) -> bool:
    """True when some engine that stages all it can may still take the first load, because it has a copy."""
    first = queue.first()
    return first is not None and bool(state.ledger.with_copy(name, first.wanted.key.digest))


def look_around(state: SchedulerState, pool: Pool, now_s: float) -> None:
    """Something waits: what was in use on the full engines at the last look may be idle by now."""
    if now_s - pool.looked_around_s < state.limits.fresh_look_s / 2:
        return
    pool.looked_around_s = now_s
    full = [
        entry
        for entry in pool.engines.values()
        if entry.engine not in pool.open and entry.is_usable and is_look_old(state, entry, now_s)
    ]
    full.sort(key=lambda entry: (entry.looked_s or 0.0, entry.engine))
    for entry in full[:MAX_LOOKS]:
        ask_look(state, entry, now_s)


def judge(state: SchedulerState, entry: EngineEntry, now_s: float) -> None:
    """Is the engine open: may it be given one load more that has no copy on it?"""
    is_open = entry.is_usable and is_staging_free(state, entry) and state.room.has_room(entry, now_s)
    if is_open != entry.is_open:
        for name in entry.pools:
            state.pool(name).judge(entry, is_open)


def choose(state: SchedulerState, load: Load, pool: Pool, now_s: float) -> EngineEntry | None:
    """The engine for a load, or None while there is none for this one."""
    key = load.wanted.key
    if is_on_its_way(state, load):
        return None  # Another pool's load brings it, or it must first be gone.
    found = pool.candidates(key.digest, LIKED_BY_HOT if load.is_replica else LIKED)
    for entry in state.ledger.with_copy(key.pool, key.digest):
        if entry not in found and entry.is_usable and state.room.has_room(entry, now_s):
            found.append(entry)
    chosen = best_of(state, load, pool, found, now_s)
    if chosen is None and len(pool.open) > len(found):
        # Not one of those that it likes will do: any other that is open.
        others = (entry for entry in pool.open.values() if entry not in found)
        chosen = best_of(state, load, pool, list(islice(others, LIKED)), now_s)
    return chosen


def best_of(
    state: SchedulerState, load: Load, pool: Pool, found: list[EngineEntry], now_s: float
) -> EngineEntry | None:
    """The engine of those found that the placement strategy likes most and that has room indeed."""
    digest, rank = load.wanted.key.digest, load.wanted.rank
    able = found
    if rank > pool.least_rank or state.ledger.copies(digest):
        able = [entry for entry in found if rank <= entry.max_rank and digest not in entry.residents]
    if load.load_class == "prefetch" and not load.is_replica:
        able = [entry for entry in able if state.room.has_idle_room(entry, now_s)]
    liked = [entry for entry in able if entry.engine not in load.avoid] if load.avoid else able
    if not liked and all(engine in load.avoid for engine in pool.engines):
        liked = able  # Every engine has failed it once; its tries are counted.
    while liked:
        entry = state.choose_engine(digest, liked)
        # Whether an open engine is still open is judged only here, when it matters.
        if (digest in entry.staged or is_staging_free(state, entry)) and state.room.has_room(entry, now_s):
            return entry
        judge(state, entry, now_s)
        liked.remove(entry)
    return None


def is_staging_free(state: SchedulerState, entry: EngineEntry) -> bool:
    """True when the engine's machine may be given one more revision to fetch."""
    return len(entry.staging) < state.limits.max_staging


def is_on_its_way(state: SchedulerState, load: Load) -> bool:
    """True while the same revision comes to an engine for another pool, or leaves one."""
    key = load.wanted.key
    if any(key.digest in entry.removing for entry in state.ledger.holders(key.digest)):
        return True
    for name in state.queues:
        if name != key.pool:
            other = state.loads.get(key._replace(pool=name))
            if other is not None and other.engine and key.pool in state.ledger.engines[other.engine].pools:
                return True
    return False


def assign(state: SchedulerState, load: Load, entry: EngineEntry, now_s: float) -> None:
    """Give a load to an engine; stage it there unless its copy is there already."""
    digest = load.wanted.key.digest
    entry.assign(digest, load.wanted.key)
    load.engine, load.since_s = entry.engine, now_s
    if digest in entry.staged:
        load.phase = "staged"
        state.touch(entry)
        return
    load.phase = "staging"
    if digest not in entry.staging:
        load.command = entry.staging[digest] = state.next_command()
        state.send(Stage(entry.engine, entry.boot_id, load.command, digest))
