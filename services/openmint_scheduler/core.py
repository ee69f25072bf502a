"""The loader-scheduler of one base model: an event and the time go in, commands come out.

Deterministic and changed in place; no I/O, no clock, no randomness. A load goes waiting → staging → staged →
attaching → resident; `pump`, which runs after every event, is what moves it on.
"""

from itertools import islice

from openmint_scheduler.endings import cancel, fail
from openmint_scheduler.ledger import EngineEntry
from openmint_scheduler.limits import Limits
from openmint_scheduler.looks import ask_look, is_look_due
from openmint_scheduler.messages import (
    AliasTurned,
    AttachDone,
    Command,
    CommandFailed,
    EngineBeat,
    EngineGone,
    EngineLooked,
    ExamineDone,
    Incoming,
    InterestReleased,
    InterestRenewed,
    LoadAsked,
    RemoveDone,
    RestartDone,
    StageDone,
    Tick,
    Unstage,
)
from openmint_scheduler.outcomes import settle
from openmint_scheduler.placing import MAX_LOOKS
from openmint_scheduler.progress import let_go_of_evaluated, pump
from openmint_scheduler.reports import beat, looked, lose_engine
from openmint_scheduler.state import SchedulerState
from openmint_scheduler.suspects import pass_time as settle_suspicions
from openmint_scheduler.wants import alias_turned, load_expected, refresh, release, want


class LoaderScheduler:
    """See the module. `handle` is all that a shell calls; `state` is there to be read."""

    def __init__(
        self,
        limits: Limits | None = None,
        placement: str = "warmest",
        eviction: str = "cheapest_to_lose",
        ordering: str = "fair",
    ) -> None:
        self.state = SchedulerState(limits or Limits(), placement, eviction, ordering)

    def handle(self, event: Incoming, now_s: float) -> list[Command]:
        """Take in one event; `now_s` never goes back. The commands may overlap once started in their order."""
        state = self.state
        state.out = []
        match event:
            case LoadAsked() | InterestRenewed():
                want(state, event.wanted, event.load_class, event.waiter, event.deadline_s, now_s)
            case InterestReleased():
                release(state, event.key, event.waiter)
            case AliasTurned():
                alias_turned(state, event, now_s)
            case EngineBeat():
                beat(state, event, now_s)
            case EngineLooked():
                looked(state, event, now_s)
            case EngineGone():
                entry = state.ledger.engines.get(event.engine)
                if entry is not None and entry.boot_id == event.boot_id:
                    lose_engine(state, entry, event.reason or "left", now_s)
            case StageDone() | AttachDone() | RemoveDone() | RestartDone() | ExamineDone() | CommandFailed():
                settle(state, event, now_s)
            case Tick():
                pass_time(state, now_s)
        pump(state, now_s)
        return state.out


def pass_time(state: SchedulerState, now_s: float) -> None:
    """Whatever happens because time has passed: silence, lapses, ageing, second tries."""
    for entry in list(state.ledger.engines.values()):
        if now_s - entry.seen_s > state.limits.silence_s:
            lose_engine(state, entry, "silent", now_s)
        elif is_look_due(state, entry, now_s):
            ask_look(state, entry, now_s)
    end_leases(state, now_s)
    for key, load in list(state.resting.items()):
        if load.not_before_s <= now_s:
            del state.resting[key]
            state.enqueue(load, now_s)
    for name, queue in state.queues.items():
        queue.age(now_s)
        if queue:
            state.restless.add(name)
            rejudge_full(state, name)
    load_expected(state, now_s)
    forget_wanted(state, now_s)
    settle_suspicions(state, now_s)
    for entry in state.ledger.engines.values():
        if entry.assigned:
            state.touch(entry)
        if len(entry.staged) > state.limits.max_staged:
            thin_staged(state, entry)
        if state.only_evaluated:
            let_go_of_evaluated(state, entry, now_s)


def rejudge_full(state: SchedulerState, name: str) -> None:
    """Time alone opens engines: what had just come may go now, and kept copies cool down."""
    pool = state.pool(name)
    closed = (entry for entry in pool.engines.values() if entry.engine not in pool.open)
    for entry in islice(closed, MAX_LOOKS):
        state.touch(entry)


def end_leases(state: SchedulerState, now_s: float) -> None:
    """Cancel what nobody renewed, and answer what was not done by its deadline."""
    thinned, ended = state.interest.expire(now_s)
    for key in thinned:
        if key in state.loads:
            refresh(state, state.loads[key], now_s)
    for key, ending in ended:
        state.reopen(key.digest)
        load = state.loads.get(key)
        if load is None or load.phase == "attaching":
            continue
        if ending == "deadline":
            detail = f"{load.wanted.label} was not loaded in time" + (f"; {load.trouble}" if load.trouble else "")
            retry_after_s = state.pace(key.pool).retry_after_s(len(state.queue(key.pool)), state.limits)
            fail(state, load, "load_timeout", detail, retry_after_s)
        else:
            cancel(state, load)


def forget_wanted(state: SchedulerState, now_s: float) -> None:
    """Names of revisions that nobody has wanted for long; most of them at once, so that it is seldom done."""
    if len(state.wanted) > state.limits.wanted_memory:
        expected = {key for _, key in state.expected}
        for key in list(state.wanted):
            is_idle = not state.interest.is_held(key) and state.demand.per_min(key.digest, now_s) < 1.0
            if is_idle and key not in expected:
                del state.wanted[key]


def thin_staged(state: SchedulerState, entry: EngineEntry) -> None:
    """Drop the copies that were not used for longest, beyond the limit."""
    surplus = len(entry.staged) - state.limits.max_staged
    if surplus > 0 and entry.is_usable:
        idle = [d for d in entry.staged if d not in entry.residents and d not in entry.assigned]
        for digest in sorted(idle, key=lambda digest: (entry.staged[digest].used_s, digest))[:surplus]:
            state.ledger.unstaged(entry, digest)
            state.send(Unstage(entry.engine, entry.boot_id, state.next_command(), digest))
