"""Hot revisions get a second copy before their engine is full of them, and lose it when they have cooled down.

What a revision takes is its sequences in flight, smoothed over looks, against what one step of its engines takes. Above
HOT_SHARE on every engine that holds it, it is hot and gets one more copy; it stays hot until fewer copies would leave
it below COLD_SHARE, so that it is not copied and dropped in turns. Copies of what is not hot are the cheapest to evict.
"""

from openmint.events.serving import SERVE_POOL
from openmint_scheduler.ledger import EngineEntry
from openmint_scheduler.load_queue import Load
from openmint_scheduler.messages import LoadKey
from openmint_scheduler.state import REPLICATOR, SchedulerState

HOT_SHARE = 0.5
COLD_SHARE = 0.25


def consider(state: SchedulerState, entry: EngineEntry, now_s: float) -> None:
    """Judge the residents of an engine that has just been looked at."""
    if not state.limits.replicates or SERVE_POOL not in entry.pools:
        return
    for digest, resident in entry.residents.items():
        if resident.busy >= HOT_SHARE * entry.max_running:
            replicate(state, digest, now_s)
        elif digest in state.hot:
            cool(state, digest)


def replicate(state: SchedulerState, digest: str, now_s: float) -> None:
    """One more copy, if all copies are hot and some engine without one has time for it."""
    holders = state.ledger.serving(SERVE_POOL, digest)
    key = LoadKey(SERVE_POOL, digest)
    if any(e.residents[digest].busy < HOT_SHARE * e.max_running for e in holders):
        return
    state.hot.add(digest)
    wanted = state.wanted.get(key)
    if wanted is None or key in state.loads:
        return
    held = {entry.engine for entry in holders}
    others = [e for e in state.pool(SERVE_POOL).open.values() if e.engine not in held]
    if not any(e.running + e.waiting < HOT_SHARE * e.max_running for e in others):
        return
    deadline_s = now_s + state.limits.prefetch_patience_s
    state.interest.renew(key, REPLICATOR, "prefetch", deadline_s, now_s, lapse_s=state.limits.prefetch_patience_s)
    load = Load(wanted, "prefetch", deadline_s, now_s, since_s=now_s, is_replica=True, avoid=held)
    state.loads[key] = load
    state.note("load.replicating", wanted, copies=len(holders))
    state.enqueue(load, now_s)


def cool(state: SchedulerState, digest: str) -> None:
    """Not hot any more when one copy less would do."""
    holders = state.ledger.serving(SERVE_POOL, digest)
    busy = sum(entry.residents[digest].busy for entry in holders)
    room = sum(entry.max_running for entry in holders[:-1]) or (holders[0].max_running if holders else 1)
    if busy < COLD_SHARE * room:
        state.hot.discard(digest)
