"""From messages of the bus to events of the core, one small function each."""

from openmint.errors import BadEvent
from openmint.events import AliasMoved, AliasTarget, EngineHeartbeat, EngineLeft, LoadRequested
from openmint.events.serving import RELEASE_DEADLINE_S, SERVE_POOL
from openmint_scheduler.messages import (
    AliasTurned,
    EngineBeat,
    EngineGone,
    InterestReleased,
    InterestRenewed,
    LoadAsked,
    LoadKey,
    Wanted,
)


def load_asked(request: LoadRequested, now_s: float, age_s: float = 0.0) -> LoadAsked | None:
    """A request that was published `age_s` ago; None when its deadline has passed since."""
    left_s = request.deadline_s - age_s
    if left_s <= 0:
        return None
    return LoadAsked(_wanted(request), request.load_class, request.waiter, now_s + left_s)


def interest_told(request: LoadRequested, subject: str, now_s: float) -> InterestRenewed | InterestReleased:
    """A renewal, or with a deadline of at most RELEASE_DEADLINE_S the end of the interest.

    Raises: BadEvent when the body is not what its subject says.
    """
    *_, base, tenant, _revision = subject.split(".")
    if (base, tenant) != (request.base, request.tenant):
        raise BadEvent(f"the body says {request.base}, {request.tenant}; its subject {subject[:200]} says otherwise")
    if request.deadline_s <= RELEASE_DEADLINE_S:
        return InterestReleased(LoadKey(request.pool, request.digest), request.waiter)
    return InterestRenewed(_wanted(request), request.load_class, request.waiter, now_s + request.deadline_s)


def engine_beat(beat: EngineHeartbeat) -> EngineBeat:
    """A heartbeat."""
    return EngineBeat(
        engine=beat.engine,
        boot_id=beat.boot_id,
        pools=tuple(beat.pools),
        condition=beat.state,
        capacity=beat.capacity,
        max_rank=beat.max_rank,
        list_version=beat.list_version,
        last_command=beat.last_command,
        running=beat.running,
        waiting=beat.waiting,
        max_running=beat.max_running,
        suspects=tuple(beat.suspects),
    )


def engine_gone(fact: EngineLeft) -> EngineGone:
    """An engine's host says that a boot is over."""
    return EngineGone(fact.engine, fact.boot_id, fact.reason)


def alias_turned(fact: AliasMoved) -> AliasTurned:
    """An alias move. Rank and size are not told; an engine that is too small refuses, and another is tried."""

    def wanted(target: AliasTarget) -> Wanted:
        return Wanted(LoadKey(SERVE_POOL, target.digest), fact.tenant, f"{fact.tenant}/{fact.policy}")

    return AliasTurned(
        alias=f"{fact.policy_id}@{fact.alias}",
        version=fact.alias_version,
        targets=tuple(wanted(target) for target in fact.targets),
        previous=tuple(wanted(target) for target in fact.previous),
    )


def _wanted(request: LoadRequested) -> Wanted:
    label = f"{request.tenant}/{request.policy}"
    key = LoadKey(request.pool, request.digest)
    return Wanted(key, request.tenant, label, request.rank, request.adapter_bytes)
