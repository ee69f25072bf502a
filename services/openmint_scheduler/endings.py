"""How loads end: resident, refused, failed, or back in the queue for another try."""

from openmint_scheduler.ledger import EngineEntry
from openmint_scheduler.load_queue import Load
from openmint_scheduler.messages import AnswerFailed, LoadKey
from openmint_scheduler.state import PREFETCHER, REPLICATOR, SchedulerState


def arrived(state: SchedulerState, entry: EngineEntry, digest: str, now_s: float) -> None:
    """The revision answers on this engine: whoever waited for it in its pools is done."""
    if not entry.serves(digest):
        return
    for pool in entry.pools:
        key = LoadKey(pool, digest)
        load = state.loads.get(key)
        if load is not None and (load.engine == entry.engine or not (load.phase == "attaching" or load.is_replica)):
            finish(state, load)
            state.pace(pool).finished(now_s, are_others_waiting=len(state.queue(pool)) > 0)
        state.interest.release(key, PREFETCHER)
        entry.evictable_s = None
        if load is not None and load.is_replica and load.engine == "":
            state.interest.release(key, REPLICATOR)


def refuse(state: SchedulerState, digest: str, detail: str, now_s: float) -> None:
    """No engine may load this, ever: all who wait are told."""
    state.refusals.remember(digest, "bad_adapter", detail, now_s)
    for load in [load for key, load in state.loads.items() if key.digest == digest]:
        fail(state, load, "bad_adapter", detail, None)


def try_again(
    state: SchedulerState,
    load: Load,
    trouble: str,
    now_s: float,
    *,
    tries: int,
    avoid: str = "",
    delay_s: float | None = None,
) -> None:
    """Back to the queue, or to its end when it has used up its tries."""
    unassign(state, load)
    load.tries += tries
    load.trouble = trouble
    if avoid:
        load.avoid |= {avoid}
    if load.tries >= state.limits.max_tries:
        detail = f"{load.wanted.label} could not be loaded after {load.tries} tries; the last: {trouble}"
        retry_after_s = state.limits.min_retry_after_s
        if load.is_suspect:
            retry_after_s = state.limits.refusal_memory_s
            state.refusals.remember(load.wanted.key.digest, "load_failed", detail, now_s)
        fail(state, load, "load_failed", detail, retry_after_s)
        return
    if not state.interest.is_held(load.wanted.key):
        finish(state, load)
        return
    load.phase, load.since_s = "waiting", now_s
    load.returns += 1
    backoff_s = state.limits.retry_delay_s * 2 ** (min(load.returns, 10) - 1)
    load.not_before_s = now_s + (min(backoff_s, state.limits.max_retry_delay_s) if delay_s is None else delay_s)
    state.note("load.returned", load.wanted, trouble=trouble, tries=load.tries)
    if load.not_before_s > now_s:
        state.resting[load.wanted.key] = load
    else:
        state.enqueue(load, now_s)


def fail(state: SchedulerState, load: Load, code: str, detail: str, retry_after_s: float | None) -> None:
    """Tell all who wait that the load will not be, and forget them."""
    state.out.append(AnswerFailed(load.wanted, code, detail, retry_after_s))
    state.interest.drop(load.wanted.key)
    finish(state, load)


def cancel(state: SchedulerState, load: Load) -> None:
    """End a load that nobody waits for, silently."""
    state.note("load.cancelled", load.wanted, phase=load.phase)
    finish(state, load)


def finish(state: SchedulerState, load: Load) -> None:
    """Take a load out, wherever it stands."""
    key = load.wanted.key
    unassign(state, load)
    if state.loads.get(key) is load:
        del state.loads[key]
        state.resting.pop(key, None)
        state.queue(key.pool).remove(load)


def unassign(state: SchedulerState, load: Load) -> None:
    """Take a load from the engine that it was given to, if it was."""
    entry = state.ledger.engines.get(load.engine)
    if entry is not None and entry.assigned.get(load.wanted.key.digest) == load.wanted.key:
        entry.unassign(load.wanted.key.digest)
        state.touch(entry)
    load.engine = ""
