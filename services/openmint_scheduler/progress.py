"""What makes loads go on: waiting → staging or staged → attaching. Runs after every event, over what has changed."""

from openmint.engines.protocol import AttachRequest
from openmint_scheduler.endings import try_again
from openmint_scheduler.ledger import EngineEntry
from openmint_scheduler.load_queue import Load, LoadQueue
from openmint_scheduler.messages import CLASS_RANKS, Attach, Remove, Stage
from openmint_scheduler.pool import Pool
from openmint_scheduler.reports import ask_look
from openmint_scheduler.state import SchedulerState

MAX_MISSES = 16
"""Loads that are looked at in one pump without finding a place, before the pump gives up on the pool."""

MAX_LOOKS = 16
"""Full engines that are looked at again in one go, for something that has become idle."""


def pump(state: SchedulerState, now_s: float) -> None:
    """Attach what is staged, make room for it, and give engines to what waits."""
    judge_touched(state, now_s)
    while state.restless:
        name = min(state.restless)
        state.restless.discard(name)
        queue = state.queues.get(name)
        if queue:
            place_waiting(state, name, queue, now_s)
        judge_touched(state, now_s)


def judge_touched(state: SchedulerState, now_s: float) -> None:
    """Let the engines that changed go on; those that came to have room make their pools restless."""
    while state.touched:
        _, entry = state.touched.popitem()
        if state.ledger.engines.get(entry.engine) is not entry:
            continue
        if entry.assigned:
            fill(state, entry, now_s)
        is_open = can_take(state, entry, now_s)
        for name in entry.pools:
            pool = state.pool(name)
            if is_open and entry.engine not in pool.open:
                state.restless.add(name)
            pool.judge(entry, is_open)


def can_take(state: SchedulerState, entry: EngineEntry, now_s: float) -> bool:
    """True when the engine may be given one load more that has no copy on it."""
    return entry.is_usable and len(entry.staging) < state.limits.max_staging and state.room.has_room(entry, now_s)


def place_waiting(state: SchedulerState, name: str, queue: LoadQueue, now_s: float) -> None:
    """Give the loads of one pool to engines, in their order, as long as any engine can take one."""
    pool = state.pool(name)
    missed: list[Load] = []
    while len(missed) < MAX_MISSES:
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
        for each in entry.pools:
            state.pool(each).judge(entry, can_take(state, entry, now_s))
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


def choose(state: SchedulerState, load: Load, pool: Pool, now_s: float) -> EngineEntry | None:
    """The engine for a load, or None while there is none for this one."""
    key = load.wanted.key
    if is_on_its_way(state, load):
        return None  # Another pool's load brings it, or it must first be gone.
    found = pool.candidates(key.digest)
    for entry in state.ledger.with_copy(key.pool, key.digest):
        if entry not in found and entry.is_usable and state.room.has_room(entry, now_s):
            found.append(entry)
    able = [entry for entry in found if load.wanted.rank <= entry.max_rank and key.digest not in entry.residents]
    if load.load_class == "prefetch":
        able = [entry for entry in able if state.room.has_idle_room(entry, now_s)]
    liked = [entry for entry in able if entry.engine not in load.avoid] if load.avoid else able
    if not liked and all(engine in load.avoid for engine in pool.engines):
        liked = able  # Every engine has failed it once; its tries are counted.
    if not liked and not able and len(pool.open) > len(found):
        # Not one of those that it likes will do: any other that is open.
        liked = [e for e in pool.open.values() if load.wanted.rank <= e.max_rank and e.engine not in load.avoid][:1]
    return state.choose_engine(key.digest, liked) if liked else None


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


def fill(state: SchedulerState, entry: EngineEntry, now_s: float) -> None:
    """Attach all that is staged and fits, in one batch; make room for the rest."""
    loads = state.loads
    ready = [load for load in map(loads.__getitem__, entry.assigned.values()) if load.phase == "staged"]
    for load in [load for load in ready if load.wanted.key.digest not in entry.staged]:
        ready.remove(load)
        try_again(state, load, f"{entry.engine} lost its staged copy", now_s, tries=1)
    if not ready or not entry.is_usable:
        return
    ready.sort(key=lambda load: (CLASS_RANKS[load.load_class], load.deadline_s, load.wanted.key))
    fits = min(max(0, entry.capacity - entry.occupied), state.limits.max_attach_batch)
    if not entry.attaching and fits and now_s >= entry.paused_until_s:
        batch = next_batch(ready, fits)
        ready = [load for load in ready if load not in batch]
        for load in batch:
            load.phase, load.since_s = "attaching", now_s
            entry.staged[load.wanted.key.digest].used_s = now_s
        entry.attaching = tuple(load.wanted.key.digest for load in batch)
        requests = tuple(AttachRequest(load.wanted.key.digest, load.wanted.label) for load in batch)
        state.send(Attach(entry.engine, entry.boot_id, state.next_command(), requests))
    shortage = entry.occupied + len(ready) - len(entry.removing) - entry.capacity
    if shortage > 0 and is_look_old(state, entry, now_s):
        ask_look(state, entry, now_s)
    elif shortage > 0:
        make_room(state, entry, shortage, now_s)
    if entry.occupied >= entry.capacity and not entry.removing and not entry.attaching:
        for load in [load for load in ready if now_s - load.since_s > state.limits.stuck_s]:
            try_again(state, load, f"no room on {entry.engine}", now_s, tries=0)


def next_batch(ready: list[Load], fits: int) -> list[Load]:
    """As many as fit; but a suspect goes alone, so that what it does is not blamed on others."""
    if ready[0].is_suspect:
        return ready[:1]
    return [load for load in ready if not load.is_suspect][:fits]


def pause_after(state: SchedulerState, entry: EngineEntry, load_class_rank: int, attach_s: float, now_s: float) -> None:
    """A batch took `attach_s` from the engine's streams: let them run before the next one.

    Whoever waits for a first token has half of the time at most, what is fetched in advance a tenth.
    """
    if entry.running:
        is_waited_for = load_class_rank < CLASS_RANKS["prefetch"]
        share = state.limits.attach_share if is_waited_for else state.limits.prefetch_attach_share
        entry.paused_until_s = now_s + attach_s * (1.0 - share) / share


def is_look_old(state: SchedulerState, entry: EngineEntry, now_s: float) -> bool:
    """True when nothing may be evicted on what was last seen."""
    return entry.looked_s is None or now_s - entry.looked_s > state.limits.fresh_look_s


def make_room(state: SchedulerState, entry: EngineEntry, places: int, now_s: float) -> None:
    """Have up to so many residents removed."""
    for digest in state.room.victims(entry, places, now_s):
        remove(state, entry, digest)


def remove(state: SchedulerState, entry: EngineEntry, digest: str) -> None:
    """Have one resident removed."""
    entry.removing[digest] = state.next_command()
    entry.evictable_s = None
    name, timeout_s = entry.residents[digest].adapter_name, state.limits.remove_timeout_s
    state.send(Remove(entry.engine, entry.boot_id, entry.removing[digest], digest, name, timeout_s))


def let_go_of_evaluated(state: SchedulerState, entry: EngineEntry, now_s: float) -> None:
    """Remove what an evaluation has left behind: room is for those who answer, and a rejected revision never will."""
    last_s = state.only_evaluated
    left = {d for d in entry.residents if d in last_s and now_s - last_s[d] > state.limits.evaluation_keep_s}
    if left and entry.is_usable:
        left &= {digest for digest, _ in state.room.may_go(entry, now_s)}
    if not left or not entry.is_usable:
        return
    if is_look_old(state, entry, now_s):
        ask_look(state, entry, now_s)
        return
    for digest in sorted(left):
        del state.only_evaluated[digest]
        remove(state, entry, digest)
