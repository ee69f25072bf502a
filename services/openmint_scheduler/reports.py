"""What engines say of themselves, and what follows when one of them is gone or has lost something."""

from openmint.events.serving import SERVE_POOL
from openmint_scheduler.endings import arrived, try_again
from openmint_scheduler.ledger import EngineEntry
from openmint_scheduler.looks import ask_look, is_look_due
from openmint_scheduler.messages import EngineBeat, EngineLooked, LoadKey, Noted
from openmint_scheduler.replication import consider
from openmint_scheduler.state import SchedulerState
from openmint_scheduler.suspects import go_on, heard
from openmint_scheduler.wants import accept, prefetch

DEATH_TRIES = 2
"""An engine that died while attaching counts as two tries: a bad adapter must not walk through the fleet."""

HOT_PER_MIN = 6.0
"""A revision lost with its engine is brought back unasked when it was wanted so often."""


def beat(state: SchedulerState, beat: EngineBeat, now_s: float) -> None:
    """An engine lives; it may be new, or started anew, or no longer ready."""
    known = state.ledger.engines.get(beat.engine)
    was_ready = known is not None and known.condition == "ready"
    if known is not None and known.boot_id != beat.boot_id:
        lose_engine(state, known, "restarted", now_s)
    is_first = beat.engine not in state.ledger.engines
    former_pools = known.pools if known is not None and known.boot_id == beat.boot_id else ()
    former_shape = (known.condition, known.capacity, known.max_rank) if known is not None else None
    state.ledger.beat(beat, now_s)
    entry = state.ledger.engines[beat.engine]
    if is_first or former_pools != entry.pools:
        for name in former_pools:
            state.pool(name).drop(entry.engine)
        for name in entry.pools:
            state.pool(name).put(entry)
    if is_first or former_shape != (entry.condition, entry.capacity, entry.max_rank):
        state.touch(entry)
    # A new leader's numbers go on from where the former one's ended, so that "older" keeps its meaning.
    state.last_command = max(state.last_command, beat.last_command)
    if is_first:
        state.out.append(Noted("engine.joined", {"engine": beat.engine, "condition": beat.condition}))
    heard(state, entry, beat.suspects, now_s)
    if was_ready and beat.condition != "ready" and known is entry:
        orphan(state, entry, "left service", now_s)
        restore(state, list(entry.residents), entry, now_s)
    if beat.list_version != entry.list_version or is_look_due(state, entry, now_s):
        ask_look(state, entry, now_s)


def looked(state: SchedulerState, event: EngineLooked, now_s: float) -> None:
    """The engine's own list: the ledger follows it."""
    seen = event.state
    state.sent.pop(event.command, None)
    entry = state.ledger.engines.get(seen.engine)
    if entry is None or entry.boot_id != seen.boot_id:
        return
    state.touch(entry)
    lost = [d for d in state.ledger.look(seen, event.asked_s, now_s) if d not in entry.removing]
    if lost:
        state.out.append(Noted("engine.lost_adapters", {"engine": entry.engine, "adapters": len(lost)}))
    cheapest = float("inf")
    for resident in seen.residents:
        known = entry.residents.get(resident.digest)
        if known is not None:
            if resident.served > known.served:
                state.demand.add(resident.digest, now_s, float(resident.served - known.served))
                known.served = resident.served
            state.room.value(entry, resident.digest, known, now_s)
            if known.in_flight == 0 and known.loss < cheapest:
                cheapest = known.loss
        if state.is_awaited(entry, resident.digest):
            arrived(state, entry, resident.digest, now_s)
    entry.cheapest = cheapest
    restore(state, lost, entry, now_s)
    consider(state, entry, now_s)
    go_on(state, entry, now_s)


def lose_engine(state: SchedulerState, entry: EngineEntry, reason: str, now_s: float) -> None:
    """The engine, or this boot of it, is gone with all that it held."""
    state.out.append(Noted("engine.lost", {"engine": entry.engine, "reason": reason}))
    state.ledger.forget(entry.engine)
    for name in entry.pools:
        state.pool(name).drop(entry.engine)
    state.sent = {number: sent for number, sent in state.sent.items() if sent.engine != entry.engine}
    orphan(state, entry, reason, now_s, is_dead=True)
    restore(state, list(entry.residents), entry, now_s)


def orphan(state: SchedulerState, entry: EngineEntry, reason: str, now_s: float, *, is_dead: bool = False) -> None:
    """Place the engine's loads again; what it is attaching is left to it as long as it lives."""
    keys = sorted(entry.assigned.values(), key=lambda key: -state.demand.per_min(key.digest, now_s))
    for key in keys:
        load = state.loads[key]
        if load.phase == "attaching" and not is_dead:
            continue
        load.is_suspect = load.is_suspect or load.phase == "attaching"
        tries = DEATH_TRIES if load.phase == "attaching" else 0
        try_again(state, load, f"{entry.engine} {reason}", now_s, tries=tries, delay_s=0.0)


def restore(state: SchedulerState, digests: list[str], entry: EngineEntry, now_s: float) -> None:
    """Load again what was lost and is still wanted, hottest first."""
    for digest in sorted(digests, key=lambda digest: (-state.demand.per_min(digest, now_s), digest)):
        for pool in entry.pools:
            key = LoadKey(pool, digest)
            if key in state.loads or state.ledger.serving(pool, digest):
                continue
            if state.interest.is_held(key):
                accept(state, state.wanted[key], now_s)
            elif digest in state.only_evaluated:
                continue  # An evaluation's requests are many, and nobody answers with it.
            elif pool == SERVE_POOL and key in state.wanted and is_hot(state, digest, now_s):
                prefetch(state, state.wanted[key], now_s)


def is_hot(state: SchedulerState, digest: str, now_s: float) -> bool:
    """True when the revision is to be brought back unasked."""
    return state.demand.per_min(digest, now_s) >= HOT_PER_MIN or state.warm.is_warm(digest, now_s)
