"""What is wanted: requests, renewals, and alias moves that are loaded for before anybody asks."""

from heapq import heappop, heappush

from openmint.events.serving import LoadClass
from openmint_scheduler.endings import cancel, fail
from openmint_scheduler.load_queue import Load
from openmint_scheduler.messages import AliasTurned, AnswerFailed, LoadKey, Wanted
from openmint_scheduler.placing import place_at_once
from openmint_scheduler.state import PREFETCHER, SchedulerState


def want(
    state: SchedulerState, wanted: Wanted, load_class: LoadClass, waiter: str, deadline_s: float, now_s: float
) -> None:
    """Somebody wants a revision: take or extend the lease, and join or begin a load if it is not resident."""
    key = wanted.key
    refusal = state.refusals.find(key.digest, now_s)
    if refusal is not None:
        retry_after_s = None if refusal.code in ("bad_adapter", "quarantined") else refusal.ends_s - now_s
        state.out.append(AnswerFailed(wanted, refusal.code, refusal.detail, retry_after_s))
        return
    patience_s = state.limits.prefetch_patience_s if waiter == PREFETCHER else 0.0
    note_use(state, key.digest, load_class, now_s)
    is_new = state.interest.renew(key, waiter, load_class, deadline_s, now_s, lapse_s=patience_s)
    state.wanted[key] = wanted
    if is_new and waiter != PREFETCHER:
        state.demand.add(key.digest, now_s)
        if state.limits.predicts and load_class == "interactive":
            expect_again(state, key, now_s)
    if state.ledger.serving(*key):
        return
    load = state.loads.get(key)
    if load is None:
        accept(state, wanted, now_s)
        return
    if is_new:
        state.note("load.coalesced", wanted, waiters=state.interest.waiters(key))
    refresh(state, load, now_s)


def note_use(state: SchedulerState, digest: str, load_class: LoadClass, now_s: float) -> None:
    """Remember whether anybody but evaluations and rollouts has asked for a revision; a prefetch is our own idea."""
    if load_class == "prefetch":
        return
    if load_class not in ("evaluation", "rollout"):
        state.only_evaluated.pop(digest, None)
    elif digest in state.only_evaluated or not state.ledger.holders(digest):
        state.only_evaluated[digest] = now_s


def release(state: SchedulerState, key: LoadKey, waiter: str) -> None:
    """A waiter is done; the load goes on only for others, or when an engine is already attaching it."""
    state.interest.release(key, waiter)
    state.reopen(key.digest)
    load = state.loads.get(key)
    if load is None or load.phase == "attaching":
        return
    if state.interest.is_held(key):
        return
    cancel(state, load)


def accept(state: SchedulerState, wanted: Wanted, now_s: float) -> None:
    """Begin a load for what holds a lease, or say at once that it can't be."""
    strongest = state.interest.strongest(wanted.key)
    if strongest is None:
        return
    load = Load(wanted, strongest[0], strongest[1], now_s, since_s=now_s)
    pool, queue, pace = state.pool(wanted.key.pool), state.queue(wanted.key.pool), state.pace(wanted.key.pool)
    if place_at_once(state, load, now_s):
        begin(state, load, waiting=0)
        return
    most_waiting = state.limits.most_waiting(len(pool.engines))
    worst = queue.worst() if load.load_class != "prefetch" and len(queue) >= most_waiting else None
    if worst is not None:
        fail(state, worst, "overloaded", "gave way to a request", pace.retry_after_s(len(queue), state.limits))
    most = pool.max_rank if pool.engines else wanted.rank
    if wanted.rank > most:
        detail = f"{wanted.label}: rank {wanted.rank} is above {most}, the most an engine of this pool takes"
        fail(state, load, "load_failed", detail, None)
    elif queue.is_full_for(wanted.tenant, most_waiting):
        who = "the load queue" if len(queue) >= most_waiting else f"the share of {wanted.tenant} in it"
        fail(state, load, "overloaded", f"{who} is full", pace.retry_after_s(len(queue), state.limits))
    elif pace.is_hopeless(len(queue), load.deadline_s - now_s):
        detail = f"{len(queue)} loads wait before it, longer than its deadline"
        fail(state, load, "overloaded", detail, pace.retry_after_s(len(queue), state.limits))
    else:
        begin(state, load, waiting=len(queue))
        state.enqueue(load, now_s)


def begin(state: SchedulerState, load: Load, waiting: int) -> None:
    """A load is accepted, behind so many others."""
    state.loads[load.wanted.key] = load
    expected_s = state.pace(load.wanted.key.pool).wait_s(waiting)
    state.note("load.accepted", load.wanted, waiting=waiting, expected_wait_s=expected_s)


def refresh(state: SchedulerState, load: Load, now_s: float) -> None:
    """Let class and deadline follow the leases: up when a prefetch gets a waiter, down when that one leaves."""
    strongest = state.interest.strongest(load.wanted.key)
    if strongest is None or strongest == (load.load_class, load.deadline_s):
        return
    load.load_class, load.deadline_s = strongest
    if load.phase == "waiting" and load.wanted.key not in state.resting:
        state.enqueue(load, now_s)


def prefetch(state: SchedulerState, wanted: Wanted, now_s: float) -> None:
    """Load a revision before anybody asks."""
    if not state.ledger.serving(*wanted.key):
        want(state, wanted, "prefetch", PREFETCHER, now_s + state.limits.prefetch_patience_s, now_s)


def expect_again(state: SchedulerState, key: LoadKey, now_s: float) -> None:
    """Plan a prefetch for a revision that has a rhythm."""
    next_s = state.rhythms.heard(key, now_s)
    if next_s is not None and len(state.expected) < state.limits.wanted_memory:
        heappush(state.expected, (next_s - state.limits.predicted_lead_s, key))


def load_expected(state: SchedulerState, now_s: float) -> None:
    """Load what is about to be asked for, if its name is still known."""
    while state.expected and state.expected[0][0] <= now_s:
        _, key = heappop(state.expected)
        wanted = state.wanted.get(key)
        if wanted is not None:
            prefetch(state, wanted, now_s)


def alias_turned(state: SchedulerState, event: AliasTurned, now_s: float) -> None:
    """Load what an alias points to now, and keep what it pointed to."""
    if event.version <= state.alias_versions.get(event.alias, 0):
        return
    state.alias_versions[event.alias] = event.version
    if len(state.alias_versions) > state.limits.refusal_memory:
        del state.alias_versions[next(iter(state.alias_versions))]
    for wanted in event.previous:
        state.warm.keep(wanted.key.digest, now_s)
    for wanted in event.targets:
        state.warm.keep(wanted.key.digest, now_s)
        state.only_evaluated.pop(wanted.key.digest, None)
        prefetch(state, wanted, now_s)
