"""What the core knows, for people: engines, residents, the queue with positions and expected waits.

The values are those of `openmint.engines.scheduler_view.SchedulerSeen`.
"""

from typing import Any

from openmint.engines.scheduler_view import SchedulerQuery
from openmint_scheduler.core import LoaderScheduler
from openmint_scheduler.ledger import EngineEntry
from openmint_scheduler.load_queue import Load

MAX_LISTED = 500
"""Loads in one answer, and engines, and residents of all of them: below the bus's megabyte. Counts are whole."""


def snapshot(
    core: LoaderScheduler, base: str, epoch: int, now_s: float, query: SchedulerQuery | None = None
) -> dict[str, Any]:
    """One look, as JSON values; ages and waits in seconds."""
    state, query = core.state, query or SchedulerQuery()
    engines = [] if query.tenant else [entry for _, entry in sorted(state.ledger.engines.items())][:MAX_LISTED]
    residents_each = MAX_LISTED // max(1, len(engines)) if query.residents else 0
    return {
        "base": base,
        "epoch": epoch,
        "engines": [_engine(entry, now_s, residents_each) for entry in engines],
        "loads": _loads(core, now_s, query.tenant),
        "waiting": {pool: len(queue) for pool, queue in state.queues.items()},
        "loads_total": len(state.loads),
    }


def _engine(entry: EngineEntry, now_s: float, listed: int) -> dict[str, Any]:
    residents = [
        {
            "revision": digest,
            "adapter_name": resident.adapter_name,
            "in_flight": resident.in_flight,
            "adapter_bytes": resident.adapter_bytes,
            "is_leaving": digest in entry.removing,
        }
        for digest, resident in sorted(entry.residents.items())[:listed]
    ]
    return {
        "engine": entry.engine,
        "boot_id": str(entry.boot_id),
        "pools": list(entry.pools),
        "condition": entry.condition,
        "is_usable": entry.is_usable,
        "seen_ago_s": round(now_s - entry.seen_s, 2),
        "capacity": entry.capacity,
        "resident_count": len(entry.residents),
        "residents": residents,
        "staged_count": len(entry.staged),
        "staging": len(entry.staging),
        "attaching": len(entry.attaching),
        "running": entry.running,
        "max_running": entry.max_running,
        "waiting": entry.waiting,
    }


def _loads(core: LoaderScheduler, now_s: float, tenant: str) -> list[dict[str, Any]]:
    """A tenant's loads, or all: those under way, then those that wait, in the order of their turns."""
    state = core.state
    listed: list[dict[str, Any]] = []
    reasons = {pool: _why_pool_waits(core, pool) for pool in state.queues}
    for load in state.loads.values():
        is_seen = not tenant or load.wanted.tenant == tenant
        if is_seen and (load.phase != "waiting" or load.wanted.key in state.resting):
            why = "rests until it is tried again" if load.phase == "waiting" else ""
            listed.append(_load(core, load, now_s, None, 0.0, why))
    for pool, queue in sorted(state.queues.items()):
        for position, load in enumerate(queue.in_order(), start=1):
            if len(listed) >= MAX_LISTED:
                break
            if not tenant or load.wanted.tenant == tenant:
                listed.append(_load(core, load, now_s, position, state.pace(pool).wait_s(position), reasons[pool]))
    return listed[:MAX_LISTED]


def _why_pool_waits(core: LoaderScheduler, pool: str) -> str:
    """What the first load of a pool's queue waits for."""
    engines = [entry for entry in core.state.ledger.engines.values() if pool in entry.pools]
    usable = [entry for entry in engines if entry.is_usable]
    if not engines:
        return f"no engine of pool {pool} is known"
    if not usable:
        conditions = ", ".join(sorted({str(entry.condition) for entry in engines}))
        return f"no engine of pool {pool} takes loads ({conditions})"
    if not any(entry.is_open for entry in usable):
        return "every engine is full of what is in use"
    return "waits its turn"


def _load(
    core: LoaderScheduler, load: Load, now_s: float, position: int | None, wait_s: float, why: str
) -> dict[str, Any]:
    return {
        "pool": load.wanted.key.pool,
        "revision": load.wanted.key.digest,
        "tenant": load.wanted.tenant,
        "policy": load.wanted.label,
        "load_class": load.load_class,
        "phase": load.phase,
        "engine": load.engine or None,
        "position": position,
        "expected_wait_s": round(wait_s, 2),
        "waited_s": round(now_s - load.asked_s, 2),
        "deadline_in_s": round(load.deadline_s - now_s, 2),
        "waiters": core.state.interest.waiters(load.wanted.key),
        "tries": load.tries,
        "why": why,
        "trouble": load.trouble,
    }
