"""What makes loads go on: waiting → staging or staged → attaching. Runs after every event."""

from openmint.engines.protocol import AttachRequest
from openmint_scheduler.endings import try_again
from openmint_scheduler.ledger import EngineEntry
from openmint_scheduler.load_queue import Load, LoadQueue
from openmint_scheduler.messages import CLASS_RANKS, Attach, Remove, Stage
from openmint_scheduler.reports import ask_look
from openmint_scheduler.state import SchedulerState

MAX_MISSES = 64
"""Loads that are looked at in one pump without finding a place, before the pump gives up on the pool."""


def pump(state: SchedulerState, now_s: float) -> None:
    """Place what waits, attach what is staged, make room for the rest."""
    for pool, queue in state.queues.items():
        if queue:
            place_waiting(state, pool, queue, now_s)
    for entry in state.ledger.engines.values():
        if entry.assigned:
            fill(state, entry, now_s)


def place_waiting(state: SchedulerState, pool: str, queue: LoadQueue, now_s: float) -> None:
    """Give the loads of one pool to engines, in their order, as long as any engine can take one."""
    engines = [entry for entry in state.ledger.in_pool(pool) if entry.is_usable]
    open_engines = [entry for entry in engines if state.room.has_room(entry, now_s)]
    for entry in engines:
        if entry not in open_engines and is_look_old(state, entry, now_s):
            ask_look(state, entry, now_s)  # What was in use at the last look may be idle by now.
    missed: list[Load] = []
    while open_engines and len(missed) < MAX_MISSES:
        load = queue.pop()
        if load is None:
            break
        entry = choose(state, load, engines, open_engines)
        if entry is None:
            missed.append(load)
            continue
        assign(state, load, entry, now_s)
        if not state.room.has_room(entry, now_s):
            open_engines.remove(entry)
    for load in reversed(missed):
        queue.give_back(load, now_s)


def choose(
    state: SchedulerState, load: Load, engines: list[EngineEntry], open_engines: list[EngineEntry]
) -> EngineEntry | None:
    """The engine for a load, or None while there is none for this one."""
    digest = load.wanted.key.digest
    if any(digest in entry.assigned or digest in entry.removing for entry in engines):
        return None  # Another pool's load brings it, or it must first be gone.
    able = [
        entry
        for entry in open_engines
        if load.wanted.rank <= entry.max_rank
        and (digest in entry.staged or digest in entry.staging or len(entry.staging) < state.limits.max_staging)
    ]
    liked = [entry for entry in able if entry.engine not in load.avoid]
    if not liked and all(entry.engine in load.avoid for entry in engines):
        liked = able  # Every engine has failed it once; its tries are counted.
    return state.choose_engine(digest, liked) if liked else None


def assign(state: SchedulerState, load: Load, entry: EngineEntry, now_s: float) -> None:
    """Give a load to an engine; stage it there unless its copy is there already."""
    digest = load.wanted.key.digest
    entry.assigned[digest] = load.wanted.key
    load.engine, load.since_s = entry.engine, now_s
    if digest in entry.staged:
        load.phase = "staged"
        return
    load.phase = "staging"
    if digest not in entry.staging:
        load.command = entry.staging[digest] = state.next_command()
        state.send(Stage(entry.engine, entry.boot_id, load.command, digest))


def fill(state: SchedulerState, entry: EngineEntry, now_s: float) -> None:
    """Attach all that is staged and fits, in one batch; make room for the rest."""
    ready = [load for load in map(state.loads.__getitem__, entry.assigned.values()) if load.phase == "staged"]
    ready.sort(key=lambda load: (CLASS_RANKS[load.load_class], load.deadline_s, load.wanted.key))
    for load in [load for load in ready if load.wanted.key.digest not in entry.staged]:
        ready.remove(load)
        try_again(state, load, f"{entry.engine} lost its staged copy", now_s, tries=1)
    if not ready or not entry.is_usable:
        return
    fits = min(max(0, entry.capacity - entry.occupied), state.limits.max_attach_batch)
    if not entry.attaching and fits:
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
    name, timeout_s = entry.residents[digest].adapter_name, state.limits.remove_timeout_s
    state.send(Remove(entry.engine, entry.boot_id, entry.removing[digest], digest, name, timeout_s))


def let_go_of_evaluated(state: SchedulerState, entry: EngineEntry, now_s: float) -> None:
    """Remove what an evaluation has left behind: room is for those who answer, and a rejected revision never will."""
    last_s = state.only_evaluated
    left = {d for d in entry.residents if d in last_s and now_s - last_s[d] > state.limits.evaluation_keep_s}
    if left and entry.is_usable:
        left &= {candidate.digest for candidate in state.room.candidates(entry, now_s)}
    if not left or not entry.is_usable:
        return
    if is_look_old(state, entry, now_s):
        ask_look(state, entry, now_s)
        return
    for digest in sorted(left):
        del state.only_evaluated[digest]
        remove(state, entry, digest)
