"""What the core knows, for people: engines, residents, the queue with positions and expected waits."""

from typing import Any

from openmint_scheduler.core import LoaderScheduler
from openmint_scheduler.ledger import EngineEntry
from openmint_scheduler.load_queue import Load

MAX_LISTED = 500
"""Loads and residents in one answer; counts are always whole."""


def snapshot(core: LoaderScheduler, base: str, epoch: int, now_s: float) -> dict[str, Any]:
    """One look, as JSON values; ages and waits in seconds."""
    state = core.state
    return {
        "base": base,
        "epoch": epoch,
        "engines": [_engine(entry, now_s) for _, entry in sorted(state.ledger.engines.items())],
        "loads": _loads(core, now_s),
        "waiting": {pool: len(queue) for pool, queue in state.queues.items()},
        "loads_total": len(state.loads),
    }


def _engine(entry: EngineEntry, now_s: float) -> dict[str, Any]:
    residents = [
        {
            "revision": digest,
            "adapter_name": resident.adapter_name,
            "in_flight": resident.in_flight,
            "adapter_bytes": resident.adapter_bytes,
            "is_leaving": digest in entry.removing,
        }
        for digest, resident in sorted(entry.residents.items())
    ]
    return {
        "engine": entry.engine,
        "boot_id": str(entry.boot_id),
        "pools": list(entry.pools),
        "condition": entry.condition,
        "is_usable": entry.is_usable,
        "seen_ago_s": round(now_s - entry.seen_s, 2),
        "capacity": entry.capacity,
        "resident_count": len(residents),
        "residents": residents[:MAX_LISTED],
        "staged_count": len(entry.staged),
        "staging": len(entry.staging),
        "attaching": len(entry.attaching),
        "running": entry.running,
        "waiting": entry.waiting,
    }


def _loads(core: LoaderScheduler, now_s: float) -> list[dict[str, Any]]:
    state = core.state
    listed: list[dict[str, Any]] = []
    for load in state.loads.values():
        if load.phase != "waiting" or load.wanted.key in state.resting:
            listed.append(_load(core, load, now_s, None, 0.0))
    for pool, queue in sorted(state.queues.items()):
        for position, load in enumerate(queue.in_order(), start=1):
            listed.append(_load(core, load, now_s, position, state.pace(pool).wait_s(position)))
            if len(listed) >= MAX_LISTED:
                return listed
    return listed[:MAX_LISTED]


def _load(core: LoaderScheduler, load: Load, now_s: float, position: int | None, wait_s: float) -> dict[str, Any]:
    return {
        "pool": load.wanted.key.pool,
        "revision": load.wanted.key.digest,
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
        "trouble": load.trouble,
    }
