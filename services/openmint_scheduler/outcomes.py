"""How commands ended. An answer to a command that is not in flight, or of another boot, changes nothing."""

from openmint.engines.protocol import AttachResult
from openmint_scheduler.endings import arrived, refuse, try_again
from openmint_scheduler.ledger import EngineEntry
from openmint_scheduler.looks import ask_look
from openmint_scheduler.messages import (
    CLASS_RANKS,
    Attach,
    AttachDone,
    CommandFailed,
    Examine,
    ExamineDone,
    FetchState,
    Noted,
    Remove,
    RemoveDone,
    Restart,
    RestartDone,
    Stage,
    StageDone,
)
from openmint_scheduler.progress import pause_after
from openmint_scheduler.replication import replicate
from openmint_scheduler.reports import DEATH_TRIES, restore
from openmint_scheduler.state import InFlight, SchedulerState
from openmint_scheduler.suspects import examined, go_on, unlearnt

ATTACH_SMOOTHING = 0.3
"""Of the newest batch, in the mean time of an attach."""


def settle(
    state: SchedulerState,
    event: StageDone | AttachDone | RemoveDone | RestartDone | ExamineDone | CommandFailed,
    now_s: float,
) -> None:
    """Match the answer with its command."""
    sent = state.sent.pop(event.command, None)
    entry = state.ledger.engines.get(event.engine)
    if sent is None or entry is None or entry.boot_id != event.boot_id:
        return
    state.touch(entry)
    match sent, event:
        case Stage(), StageDone():
            staged(state, entry, sent, now_s)
        case Attach(), AttachDone():
            attached(state, entry, sent, event.results, now_s)
        case Remove(), RemoveDone():
            removed(state, entry, sent, event.removed, now_s)
        case Restart(), RestartDone():
            pass  # Its next boot tells of itself.
        case Examine(), ExamineDone():
            examined(state, entry, event.found, now_s)
        case _, CommandFailed():
            command_failed(state, entry, sent, event, now_s)
        case _:
            raise AssertionError(f"{type(event).__name__} answers {type(sent).__name__}")


def staged(state: SchedulerState, entry: EngineEntry, sent: Stage, now_s: float) -> None:
    """A copy is ready; the next pump attaches it."""
    entry.staging.pop(sent.digest, None)
    state.ledger.staged(entry, sent.digest, now_s)
    load = state.assigned_load(entry, sent.digest)
    if load is not None and load.phase == "staging":
        load.phase, load.since_s = "staged", now_s
    go_on(state, entry, now_s)


def attached(
    state: SchedulerState, entry: EngineEntry, sent: Attach, results: tuple[AttachResult, ...], now_s: float
) -> None:
    """Each revision of a batch has its own outcome; one that is not told was refused."""
    entry.attaching = ()
    outcomes = {result.digest: result for result in results}
    attach_s = sum(result.attach_ms for result in results) / 1000.0
    entry.attach_s += ATTACH_SMOOTHING * (attach_s / max(1, len(results)) - entry.attach_s)
    loads = {request.digest: state.assigned_load(entry, request.digest) for request in sent.requests}
    best = min((CLASS_RANKS[load.load_class] for load in loads.values() if load is not None), default=0)
    pause_after(state, entry, best, attach_s, now_s)
    for digest, load in loads.items():
        result = outcomes.get(digest, AttachResult(digest, error_code="refused", error="it was not answered"))
        if not result.error_code:
            adapter_bytes = load.wanted.adapter_bytes if load else 0
            state.ledger.resident(entry, digest, result.adapter_name, adapter_bytes, sent.command, now_s)
            resident = entry.residents[digest]
            # Those who waited were counted when they asked.
            resident.served = state.interest.waiters(load.wanted.key) if load is not None else 0
            state.room.value(entry, digest, resident, now_s)
            if load is not None:
                wait_s = now_s - load.asked_s
                state.note("adapter.attached", load.wanted, engine=entry.engine, attach_ms=result.attach_ms,
                           wait_s=wait_s, load_class=load.load_class)  # fmt: skip
            arrived(state, entry, digest, now_s)
            if digest in state.hot:
                replicate(state, digest, now_s)
        elif result.error_code == "bad_adapter":
            refuse(state, digest, result.error, now_s)
        elif load is not None:
            if result.error_code == "not_staged":
                state.ledger.unstaged(entry, digest)
            detail = f"{entry.engine}: {result.error or result.error_code}"
            # A full engine only told us that our look at it is out of date.
            tries = 0 if result.error_code == "full" else 1
            avoid = entry.engine if result.error_code == "refused" else ""
            try_again(state, load, detail, now_s, tries=tries, avoid=avoid)
            ask_look(state, entry, now_s)


def removed(state: SchedulerState, entry: EngineEntry, sent: Remove, removed: bool, now_s: float) -> None:
    """The place is free, or the adapter is admitted again because it was in use."""
    entry.removing.pop(sent.digest, None)
    entry.evictable_s = None
    if removed:
        state.ledger.gone(entry, sent.digest, sent.command, now_s)
        state.out.append(Noted("adapter.evicted", {"engine": entry.engine, "revision": sent.digest}))
        restore(state, [sent.digest] if state.is_held_on(entry, sent.digest) else [], entry, now_s)
    elif sent.digest in entry.residents:
        resident = entry.residents[sent.digest]
        resident.not_before_s, resident.in_flight = now_s + state.limits.remove_again_s, max(1, resident.in_flight)
        arrived(state, entry, sent.digest, now_s)
        ask_look(state, entry, now_s)


def command_failed(
    state: SchedulerState, entry: EngineEntry, sent: InFlight, failed: CommandFailed, now_s: float
) -> None:
    """Whose fault was it, and where does the load go now?"""
    detail = f"{entry.engine}: {failed.detail or failed.code}"
    match sent:
        case Stage():
            entry.staging.pop(sent.digest, None)
            unlearnt(state, entry, sent.digest, now_s, is_final=failed.code == "bad_adapter")
            load = state.assigned_load(entry, sent.digest)
            if failed.code == "bad_adapter":
                refuse(state, sent.digest, failed.detail, now_s)
            elif load is not None:
                # A store that is away is nobody's fault: the deadline alone ends this.
                tries, avoid = (0, "") if failed.code == "store_unavailable" else (1, entry.engine)
                try_again(state, load, detail, now_s, tries=tries, avoid=avoid)
        case Attach():
            entry.attaching = ()
            for request in sent.requests:
                load = state.assigned_load(entry, request.digest)
                if load is not None:
                    load.is_suspect = True
                    try_again(state, load, detail, now_s, tries=DEATH_TRIES, avoid=entry.engine)
        case Remove():
            entry.removing.pop(sent.digest, None)
            entry.evictable_s = None
            if sent.digest in entry.residents:
                entry.residents[sent.digest].not_before_s = now_s + state.limits.remove_again_s
        case FetchState():
            # Asked anew before long, but not at once: an engine that is gone refuses a thousand times a second.
            entry.look_asked_s = now_s - state.limits.look_timeout_s + state.limits.fresh_look_s
            return
        case Restart():
            state.suspects.asked.pop(entry.engine, None)
        case Examine():
            state.suspects.examining.pop(entry.engine, None)
            unlearnt(state, entry, sent.request.digest, now_s)
    ask_look(state, entry, now_s)
