"""Looking at engines: when, and how old a look may be."""

from openmint_scheduler.ledger import EngineEntry
from openmint_scheduler.messages import FetchState
from openmint_scheduler.state import SchedulerState


def ask_look(state: SchedulerState, entry: EngineEntry, now_s: float) -> None:
    """Have an engine looked at, unless an answer is on its way."""
    asked_s = entry.look_asked_s
    if asked_s is None or now_s - asked_s > state.limits.look_timeout_s:
        entry.look_asked_s = now_s
        state.send(FetchState(entry.engine, entry.boot_id, state.next_command()))


def is_look_due(state: SchedulerState, entry: EngineEntry, now_s: float) -> bool:
    """True when decisions rest on too old a look; on a busy engine things change faster."""
    if entry.looked_s is None:
        return True
    is_busy = 2 * (entry.running + entry.waiting) >= entry.max_running
    return now_s - entry.looked_s > (state.limits.busy_look_s if is_busy else state.limits.look_s)


def is_look_old(state: SchedulerState, entry: EngineEntry, now_s: float) -> bool:
    """True when nothing may be evicted on what was last seen."""
    return entry.looked_s is None or now_s - entry.looked_s > state.limits.fresh_look_s
