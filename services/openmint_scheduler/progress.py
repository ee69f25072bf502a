"""What makes loads go on: waiting → staging or staged → attaching. Runs after every event, over what has changed."""

from openmint.engines.protocol import AttachRequest
from openmint_scheduler.endings import try_again
from openmint_scheduler.ledger import EngineEntry
from openmint_scheduler.load_queue import Load
from openmint_scheduler.looks import ask_look, is_look_old
from openmint_scheduler.messages import CLASS_RANKS, Attach, Remove
from openmint_scheduler.placing import judge, place_waiting
from openmint_scheduler.state import SchedulerState


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
        if not entry.is_open:
            judge(state, entry, now_s)
            if entry.is_open:
                state.restless.update(entry.pools)
        elif not entry.is_usable:
            judge(state, entry, now_s)


def fill(state: SchedulerState, entry: EngineEntry, now_s: float) -> None:
    """Attach all that is staged and fits, in one batch; make room for the rest."""
    loads = state.loads
    ready = [load for load in map(loads.__getitem__, entry.assigned.values()) if load.phase == "staged"]
    for load in [load for load in ready if load.wanted.key.digest not in entry.staged]:
        ready.remove(load)
        try_again(state, load, f"{entry.engine} lost its staged copy", now_s, tries=1)
    if not ready or not entry.is_usable:
        return
    if len(ready) > 1:
        ready.sort(key=lambda load: (CLASS_RANKS[load.load_class], load.deadline_s, load.wanted.key))
    occupied = entry.occupied
    fits = min(max(0, entry.capacity - occupied), most_at_once(state, entry))
    if not entry.attaching and fits and now_s >= entry.paused_until_s:
        batch = next_batch(ready, fits)
        ready = [load for load in ready if load not in batch]
        for load in batch:
            load.phase, load.since_s = "attaching", now_s
            entry.staged[load.wanted.key.digest].used_s = now_s
        entry.attaching = tuple(load.wanted.key.digest for load in batch)
        requests = tuple(AttachRequest(load.wanted.key.digest, load.wanted.label) for load in batch)
        state.send(Attach(entry.engine, entry.boot_id, state.next_command(), requests))
        occupied = entry.occupied
    shortage = occupied + len(ready) - len(entry.removing) - entry.capacity
    if shortage > 0 and is_look_old(state, entry, now_s):
        ask_look(state, entry, now_s)
    elif shortage > 0:
        make_room(state, entry, shortage, now_s)
    if occupied >= entry.capacity and not entry.removing and not entry.attaching:
        for load in [load for load in ready if now_s - load.since_s > state.limits.stuck_s]:
            try_again(state, load, f"no room on {entry.engine}", now_s, tries=0)


def most_at_once(state: SchedulerState, entry: EngineEntry) -> int:
    """Attaches in one gap: as many as wait, but running streams stand still no longer than the limit says."""
    most = state.limits.max_attach_batch
    if entry.running and entry.attach_s > 0:
        most = min(most, max(1, int(state.limits.max_pause_s / entry.attach_s)))
    return most


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
