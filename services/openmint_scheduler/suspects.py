"""Engines that give answers which are no numbers, and the revisions that may have spoiled them.

Such an engine admits nothing more and says so; it is restarted, and what may have been the cause is held: loaded
nowhere until the fresh engine has probed it alone. What fails alone twice is condemned (the keeper quarantines it);
what answers is exonerated and loads as before. Everybody else's revisions go to other engines at once.
"""

from openmint.engines.protocol import AttachRequest, Examination
from openmint_scheduler.endings import fail, unassign
from openmint_scheduler.ledger import EngineEntry
from openmint_scheduler.messages import Condemn, Examine, LoadKey, Noted, Restart, Stage, Wanted
from openmint_scheduler.state import SchedulerState
from openmint_scheduler.suspect_book import Held

CONDEMNED_AT = 2
"""Failures alone, each on a fresh or cleansed engine whose base answered well before and after."""

MAX_UNLEARNT = 5
"""Examinations that taught nothing, after which a suspect is let go: it would be held for ever otherwise."""

HOLD_S = 300.0
"""A suspect whose engine has not come back for so long is let go: a restart takes up to three minutes."""

STALE_BEAT_S = 5.0
"""A heartbeat may name a revision for so long after it was examined."""

RESTART_AGAIN_S = 30.0
"""A boot that was asked to end and still tells of itself after so long is asked again."""

MAX_RESTARTS = 4
RESTARTS_WITHIN_S = 900.0
"""An engine that turns suspect more often is left out of service: a restart does not cure it."""

UNKNOWN_LABEL = "unknown/unknown"


def heard(state: SchedulerState, entry: EngineEntry, told: tuple[str, ...], now_s: float) -> None:
    """A heartbeat: hold what the engine suspects, restart it when it is suspect, else let it examine."""
    for digest in told:
        settled_s = state.suspects.settled.get((entry.engine, digest))
        if settled_s is None or now_s - settled_s > STALE_BEAT_S:
            hold(state, entry, digest, now_s)
    if entry.condition == "suspect":
        restart(state, entry, now_s)
    mark(state, entry)
    go_on(state, entry, now_s)


def hold(state: SchedulerState, entry: EngineEntry, digest: str, now_s: float) -> None:
    """Load the revision nowhere until this engine has probed it; what is on its way is taken back."""
    held = state.suspects.held.get(digest)
    if held is None:
        held = state.suspects.held[digest] = Held(now_s)
        state.out.append(Noted("adapter.suspected", {"engine": entry.engine, "revision": digest}))
        for load in [load for key, load in state.loads.items() if key.digest == digest and load.phase != "attaching"]:
            unassign(state, load)
            state.queue(load.wanted.key.pool).remove(load)
            load.phase, load.since_s, load.trouble = "waiting", now_s, "it is suspected of spoiling an engine"
            state.enqueue(load, now_s)
    held.engines.add(entry.engine)


def restart(state: SchedulerState, entry: EngineEntry, now_s: float) -> None:
    """Have a fresh boot made, unless that was asked for, or has been in vain too often."""
    book = state.suspects
    asked = book.asked.get(entry.engine)
    if asked is not None and asked[0] == entry.boot_id and now_s - asked[1] < RESTART_AGAIN_S:
        return
    if entry.boot_id in book.given_up:
        return
    times = [at_s for at_s in book.restarts.get(entry.engine, []) if now_s - at_s < RESTARTS_WITHIN_S]
    if len(times) >= MAX_RESTARTS:
        book.given_up.add(entry.boot_id)
        state.out.append(Noted("engine.given_up", {"engine": entry.engine, "restarts": len(times)}))
        return
    book.restarts[entry.engine] = [*times, now_s]
    book.asked[entry.engine] = (entry.boot_id, now_s)
    book.examining.pop(entry.engine, None)
    state.out.append(Noted("engine.restarting", {"engine": entry.engine}))
    reason = "the engine gave answers that are not finite"
    state.send(Restart(entry.engine, entry.boot_id, state.next_command(), reason))


def mark(state: SchedulerState, entry: EngineEntry) -> None:
    """Keep an engine that has something to examine out of placement, and let it in afterwards."""
    is_examining = bool(state.suspects.pending(entry.engine))
    if is_examining != entry.is_examining:
        entry.is_examining = is_examining
        state.touch(entry)


def go_on(state: SchedulerState, entry: EngineEntry, now_s: float) -> None:
    """Have the next suspect staged, or examined, on an engine that is fresh."""
    book = state.suspects
    if entry.condition != "ready" or entry.looked_s is None or entry.engine in book.examining:
        return
    for digest in book.pending(entry.engine):
        if digest in entry.staged:
            book.examining[entry.engine] = digest
            request = AttachRequest(digest, label_of(state, entry, digest))
            state.send(Examine(entry.engine, entry.boot_id, state.next_command(), request))
            return
        if digest not in entry.staging:
            entry.staging[digest] = state.next_command()
            state.send(Stage(entry.engine, entry.boot_id, entry.staging[digest], digest))


def examined(state: SchedulerState, entry: EngineEntry, found: Examination, now_s: float) -> None:
    """What an examination has shown."""
    book = state.suspects
    book.examining.pop(entry.engine, None)
    held = book.held.get(found.digest)
    if held is not None:
        held.failures += found.failures
        if found.probes == 0:
            unlearnt(state, entry, found.digest, now_s)
        elif found.failures == 0 or held.failures >= CONDEMNED_AT:
            held.engines.discard(entry.engine)
            book.settled[entry.engine, found.digest] = now_s
        if held.failures >= CONDEMNED_AT:
            condemn(state, entry, found, held.failures, now_s)
        elif not held.engines and state.suspects.is_held(found.digest):
            let_go(state, found.digest, "adapter.exonerated", now_s)
    if not found.is_clean:
        restart(state, entry, now_s)
    mark(state, entry)
    if found.probes > 0:
        go_on(state, entry, now_s)


def unlearnt(state: SchedulerState, entry: EngineEntry, digest: str, now_s: float, *, is_final: bool = False) -> None:
    """A suspect could not be examined. After several tries, or at once when it never can be, it is let go."""
    held = state.suspects.held.get(digest)
    if held is not None:
        held.unlearnt += 1
        if is_final or held.unlearnt >= MAX_UNLEARNT:
            let_go(state, digest, "adapter.let_go", now_s)
        mark(state, entry)


def condemn(state: SchedulerState, entry: EngineEntry, found: Examination, failures: int, now_s: float) -> None:
    """Nobody loads it any more; whoever waits for it is told why."""
    del state.suspects.held[found.digest]
    reason = f"alone on engine {entry.engine} it gave no finite answer, {failures} times: {found.detail}"[:500]
    state.refusals.remember(found.digest, "quarantined", reason, now_s)
    for load in [load for key, load in state.loads.items() if key.digest == found.digest]:
        fail(state, load, "quarantined", reason, None)
    state.out.append(Condemn(entry.engine, found.digest, failures, reason))


def let_go(state: SchedulerState, digest: str, happening: str, now_s: float) -> None:
    """The revision loads as any other."""
    held = state.suspects.held.pop(digest)
    state.out.append(Noted(happening, {"revision": digest, "held_s": round(now_s - held.since_s, 2)}))
    for key, load in list(state.resting.items()):
        if key.digest == digest:
            del state.resting[key]
            state.enqueue(load, now_s)
    for engine in held.engines:
        if engine in state.ledger.engines:
            mark(state, state.ledger.engines[engine])


def pass_time(state: SchedulerState, now_s: float) -> None:
    """Let go of those whose engine does not come back, and forget what is settled."""
    book = state.suspects
    for digest, held in list(book.held.items()):
        if now_s - held.since_s > HOLD_S and not held.engines & state.ledger.engines.keys():
            let_go(state, digest, "adapter.let_go", now_s)
    if book.settled:
        book.settled = {key: at_s for key, at_s in book.settled.items() if now_s - at_s <= STALE_BEAT_S}


def label_of(state: SchedulerState, entry: EngineEntry, digest: str) -> str:
    """`tenant/policy` of a revision, as somebody asked for it."""
    wanted: Wanted | None = next(
        (state.wanted[LoadKey(pool, digest)] for pool in entry.pools if LoadKey(pool, digest) in state.wanted), None
    )
    return wanted.label if wanted is not None else UNKNOWN_LABEL
