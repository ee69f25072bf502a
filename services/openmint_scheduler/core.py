"""The loader-scheduler of one base model: an event and the time go in, commands come out.

Deterministic and changed in place; no I/O, no clock, no randomness. A load goes waiting → staging → staged →
attaching → resident; what makes it go on is `_pump`, which runs after every event.
"""

from openmint.engines.protocol import AttachRequest, AttachResult
from openmint.events import SERVE_POOL
from openmint_scheduler.demand import DemandMeter
from openmint_scheduler.eviction import EVICTIONS
from openmint_scheduler.interest import InterestBook
from openmint_scheduler.ledger import EngineEntry, ResidencyLedger, StagedEntry
from openmint_scheduler.limits import Limits
from openmint_scheduler.load_queue import Load, LoadQueue
from openmint_scheduler.messages import (
    CLASS_RANKS,
    AliasTurned,
    AnswerFailed,
    Attach,
    AttachDone,
    Command,
    CommandFailed,
    EngineBeat,
    EngineGone,
    EngineLooked,
    FetchState,
    Incoming,
    InterestRenewed,
    LoadAsked,
    LoadKey,
    Noted,
    Remove,
    RemoveDone,
    Stage,
    StageDone,
    Tick,
    Unstage,
    Wanted,
)
from openmint_scheduler.pace import Pace
from openmint_scheduler.placement import PLACEMENTS
from openmint_scheduler.refusals import Refusals
from openmint_scheduler.room import RoomMaker
from openmint_scheduler.warm import WarmBook

PREFETCHER = "prefetch"
"""The waiter in whose name the core itself wants a load."""

DEATH_TRIES = 2
"""An engine that died while attaching counts as two tries: a bad adapter must not walk through the fleet."""

MAX_MISSES = 64
"""Loads that are looked at in one pump without finding a place, before the pump gives up on the pool."""

HOT_PER_MIN = 6.0
"""A revision lost with its engine is brought back unasked when it was wanted so often."""

InFlight = Stage | Attach | Remove | FetchState


class LoaderScheduler:
    """See the module. `handle` is all that the shell calls; the rest is there to be read."""

    def __init__(
        self, limits: Limits | None = None, placement: str = "warmest", eviction: str = "cheapest_to_lose"
    ) -> None:
        self.limits = limits or Limits()
        self.ledger = ResidencyLedger()
        self.interest = InterestBook(self.limits.lapse_s)
        self.loads: dict[LoadKey, Load] = {}
        self.queues: dict[str, LoadQueue] = {}
        self.paces: dict[str, Pace] = {}
        self.demand = DemandMeter()
        self.warm = WarmBook(self.limits.warm_s, self.limits.warm_share)
        self.refusals = Refusals(self.limits.refusal_memory_s, self.limits.refusal_memory)
        self.room = RoomMaker(self.interest, self.warm, self.demand, self.limits, EVICTIONS[eviction])
        self._place = PLACEMENTS[placement]
        self._resting: dict[LoadKey, Load] = {}
        self._wanted: dict[LoadKey, Wanted] = {}
        self._sent: dict[int, InFlight] = {}
        self._command = 0
        self._alias_versions: dict[str, int] = {}
        self._out: list[Command] = []

    def handle(self, event: Incoming, now_s: float) -> list[Command]:
        """Take in one event; the commands must be carried out in their order, all may overlap."""
        self._out = []
        match event:
            case LoadAsked() | InterestRenewed():
                self._want(event.wanted, event.load_class, event.waiter, event.deadline_s, now_s)
            case AliasTurned():
                self._alias_turned(event, now_s)
            case EngineBeat():
                self._beat(event, now_s)
            case EngineLooked():
                self._looked(event, now_s)
            case EngineGone():
                entry = self.ledger.engines.get(event.engine)
                if entry is not None and entry.boot_id == event.boot_id:
                    self._lose(entry, event.reason or "left", now_s)
            case StageDone() | AttachDone() | RemoveDone() | CommandFailed():
                self._settle(event, now_s)
            case Tick():
                self._tick(now_s)
        self._pump(now_s)
        return self._out

    # Who wants what

    def _want(self, wanted: Wanted, load_class: str, waiter: str, deadline_s: float, now_s: float) -> None:
        key = wanted.key
        refusal = self.refusals.find(key.digest, now_s)
        if refusal is not None:
            self._out.append(AnswerFailed(wanted, "bad_adapter", refusal, None))
            return
        assert load_class in CLASS_RANKS
        patience_s = self.limits.prefetch_patience_s if waiter == PREFETCHER else 0.0
        is_new = self.interest.renew(key, waiter, load_class, deadline_s, now_s, lapse_s=patience_s)
        self._wanted[key] = wanted
        if is_new and waiter != PREFETCHER:
            self.demand.add(key.digest, now_s)
        if self.ledger.serving(*key):
            return
        load = self.loads.get(key)
        if load is None:
            self._accept(wanted, now_s)
            return
        if is_new:
            self._note("load.coalesced", wanted, waiters=self.interest.waiters(key))
        self._refresh(load, now_s)

    def _accept(self, wanted: Wanted, now_s: float) -> None:
        strongest = self.interest.strongest(wanted.key)
        if strongest is None:
            return
        load = Load(wanted, strongest[0], strongest[1], now_s, since_s=now_s)
        queue, pace = self._queue(wanted.key.pool), self._pace(wanted.key.pool)
        worst = queue.worst() if load.load_class != "prefetch" and len(queue) >= self.limits.max_waiting else None
        if worst is not None:
            self._fail(worst, "overloaded", "gave way to a request", pace.retry_after_s(len(queue), self.limits), now_s)
        engines = self.ledger.in_pool(wanted.key.pool)
        most = max((entry.max_rank for entry in engines), default=wanted.rank)
        if wanted.rank > most:
            detail = f"{wanted.label}: rank {wanted.rank} is above {most}, the most an engine of this pool takes"
            self._fail(load, "load_failed", detail, None, now_s)
        elif queue.is_full_for(wanted.tenant):
            who = "the load queue" if len(queue) >= self.limits.max_waiting else f"the share of {wanted.tenant} in it"
            self._fail(load, "overloaded", f"{who} is full", pace.retry_after_s(len(queue), self.limits), now_s)
        elif pace.is_hopeless(len(queue), load.deadline_s - now_s):
            detail = f"{len(queue)} loads wait before it, longer than its deadline"
            self._fail(load, "overloaded", detail, pace.retry_after_s(len(queue), self.limits), now_s)
        else:
            self.loads[wanted.key] = load
            self._note("load.accepted", wanted, waiting=len(queue), expected_wait_s=pace.wait_s(len(queue)))
            queue.push(load, now_s)

    def _refresh(self, load: Load, now_s: float) -> None:
        """Let class and deadline follow the leases: up when a prefetch gets a waiter, down when that one leaves."""
        strongest = self.interest.strongest(load.wanted.key)
        if strongest is None or strongest == (load.load_class, load.deadline_s):
            return
        load.load_class, load.deadline_s = strongest
        if load.phase == "waiting" and load.wanted.key not in self._resting:
            self._queue(load.wanted.key.pool).push(load, now_s)

    def _prefetch(self, wanted: Wanted, now_s: float) -> None:
        if not self.ledger.serving(*wanted.key):
            self._want(wanted, "prefetch", PREFETCHER, now_s + self.limits.prefetch_patience_s, now_s)

    def _alias_turned(self, event: AliasTurned, now_s: float) -> None:
        if event.version <= self._alias_versions.get(event.alias, 0):
            return
        self._alias_versions[event.alias] = event.version
        if len(self._alias_versions) > self.limits.refusal_memory:
            del self._alias_versions[next(iter(self._alias_versions))]
        for wanted in event.previous:
            self.warm.keep(wanted.key.digest, now_s)
        for wanted in event.targets:
            self.warm.keep(wanted.key.digest, now_s)
            self._prefetch(wanted, now_s)

    # What engines report

    def _beat(self, beat: EngineBeat, now_s: float) -> None:
        known = self.ledger.engines.get(beat.engine)
        was_ready = known is not None and known.condition == "ready"
        if known is not None and known.boot_id != beat.boot_id:
            self._lose(known, "restarted", now_s)
        is_first = beat.engine not in self.ledger.engines
        self.ledger.beat(beat, now_s)
        entry = self.ledger.engines[beat.engine]
        # A new leader's numbers go on from where the former one's ended, so that "older" keeps its meaning.
        self._command = max(self._command, beat.last_command)
        if is_first:
            self._out.append(Noted("engine.joined", {"engine": beat.engine, "condition": beat.condition}))
        if was_ready and beat.condition != "ready" and known is entry:
            self._orphan(entry, "left service", now_s)
            self._restore(list(entry.residents), entry, now_s)
        if beat.list_version != entry.list_version:
            self._look(entry, now_s)

    def _look(self, entry: EngineEntry, now_s: float) -> None:
        asked_s = entry.look_asked_s
        if asked_s is None or now_s - asked_s > self.limits.look_timeout_s:
            entry.look_asked_s = now_s
            self._send(FetchState(entry.engine, entry.boot_id, self._next_command()))

    def _looked(self, event: EngineLooked, now_s: float) -> None:
        state = event.state
        self._sent.pop(event.command, None)
        entry = self.ledger.engines.get(state.engine)
        if entry is None or entry.boot_id != state.boot_id:
            return
        lost = self.ledger.look(state, event.asked_s, now_s)
        if lost:
            self._out.append(Noted("engine.lost_adapters", {"engine": entry.engine, "adapters": len(lost)}))
        for resident in state.residents:
            if resident.in_flight:
                self.demand.add(resident.digest, now_s, float(resident.in_flight))
        for digest in entry.residents:
            self._arrived(entry, digest, now_s)
        self._restore(lost, entry, now_s)

    def _lose(self, entry: EngineEntry, reason: str, now_s: float) -> None:
        """The engine, or this boot of it, is gone with all that it held."""
        self._out.append(Noted("engine.lost", {"engine": entry.engine, "reason": reason}))
        self.ledger.forget(entry.engine)
        self._sent = {number: sent for number, sent in self._sent.items() if sent.engine != entry.engine}
        self._orphan(entry, reason, now_s, is_dead=True)
        self._restore(list(entry.residents), entry, now_s)

    def _orphan(self, entry: EngineEntry, reason: str, now_s: float, *, is_dead: bool = False) -> None:
        """Place the engine's loads again; what it is attaching is left to it as long as it lives."""
        keys = sorted(entry.assigned.values(), key=lambda key: -self.demand.per_min(key.digest, now_s))
        for key in keys:
            load = self.loads[key]
            if load.phase == "attaching" and not is_dead:
                continue
            tries = DEATH_TRIES if load.phase == "attaching" else 0
            self._again(load, f"{entry.engine} {reason}", now_s, tries=tries, delay_s=0.0)

    def _restore(self, digests: list[str], entry: EngineEntry, now_s: float) -> None:
        """Load again what was lost and is still wanted, hottest first."""
        for digest in sorted(digests, key=lambda digest: (-self.demand.per_min(digest, now_s), digest)):
            for pool in entry.pools:
                key = LoadKey(pool, digest)
                if key in self.loads or self.ledger.serving(pool, digest):
                    continue
                if self.interest.is_held(key):
                    self._accept(self._wanted[key], now_s)
                elif pool == SERVE_POOL and key in self._wanted and self._is_hot(digest, now_s):
                    self._prefetch(self._wanted[key], now_s)

    def _is_hot(self, digest: str, now_s: float) -> bool:
        return self.demand.per_min(digest, now_s) >= HOT_PER_MIN or self.warm.is_warm(digest, now_s)

    # How commands ended

    def _settle(self, event: StageDone | AttachDone | RemoveDone | CommandFailed, now_s: float) -> None:
        sent = self._sent.pop(event.command, None)
        entry = self.ledger.engines.get(event.engine)
        if sent is None or entry is None or entry.boot_id != event.boot_id:
            return
        match sent, event:
            case Stage(), StageDone():
                self._staged(entry, sent, now_s)
            case Attach(), AttachDone():
                self._attached(entry, sent, event.results, now_s)
            case Remove(), RemoveDone():
                self._removed(entry, sent, event.removed, now_s)
            case _, CommandFailed():
                self._command_failed(entry, sent, event, now_s)
            case _:
                raise AssertionError(f"{type(event).__name__} answers {type(sent).__name__}")

    def _staged(self, entry: EngineEntry, sent: Stage, now_s: float) -> None:
        entry.staging.pop(sent.digest, None)
        entry.staged[sent.digest] = StagedEntry(sent.command, now_s, now_s)
        load = self._assigned(entry, sent.digest)
        if load is not None and load.phase == "staging":
            load.phase, load.since_s = "staged", now_s

    def _attached(self, entry: EngineEntry, sent: Attach, results: tuple[AttachResult, ...], now_s: float) -> None:
        entry.attaching = ()
        outcomes = {result.digest: result for result in results}
        for digest in (request.digest for request in sent.requests):
            result = outcomes.get(digest, AttachResult(digest, error_code="refused", error="it was not answered"))
            load = self._assigned(entry, digest)
            if not result.error_code:
                adapter_bytes = load.wanted.adapter_bytes if load else 0
                self.ledger.resident(entry, digest, result.adapter_name, adapter_bytes, sent.command, now_s)
                if load is not None:
                    wait_s = now_s - load.asked_s
                    self._note("adapter.attached", load.wanted, engine=entry.engine, attach_ms=result.attach_ms,
                               wait_s=wait_s)  # fmt: skip
                self._arrived(entry, digest, now_s)
            elif result.error_code == "bad_adapter":
                self._refuse(digest, result.error, now_s)
            elif load is not None:
                if result.error_code == "not_staged":
                    entry.staged.pop(digest, None)
                detail = f"{entry.engine}: {result.error or result.error_code}"
                # A full engine told us that our look at it is out of date; that is not the adapter's fault.
                is_fault = result.error_code == "refused"
                self._again(load, detail, now_s, tries=1, avoid=entry.engine if is_fault else "")
                self._look(entry, now_s)

    def _removed(self, entry: EngineEntry, sent: Remove, removed: bool, now_s: float) -> None:
        entry.removing.pop(sent.digest, None)
        if removed:
            self.ledger.gone(entry, sent.digest, sent.command, now_s)
            self._out.append(Noted("adapter.evicted", {"engine": entry.engine, "revision": sent.digest}))
            self._restore([sent.digest] if self._is_held_on(entry, sent.digest) else [], entry, now_s)
        elif sent.digest in entry.residents:
            resident = entry.residents[sent.digest]
            resident.not_before_s, resident.in_flight = now_s + self.limits.remove_again_s, max(1, resident.in_flight)
            self._arrived(entry, sent.digest, now_s)
            self._look(entry, now_s)

    def _command_failed(self, entry: EngineEntry, sent: InFlight, failed: CommandFailed, now_s: float) -> None:
        detail = f"{entry.engine}: {failed.detail or failed.code}"
        match sent:
            case Stage():
                entry.staging.pop(sent.digest, None)
                load = self._assigned(entry, sent.digest)
                if failed.code == "bad_adapter":
                    self._refuse(sent.digest, failed.detail, now_s)
                elif load is not None:
                    avoid = "" if failed.code == "store_unavailable" else entry.engine
                    self._again(load, detail, now_s, tries=1, avoid=avoid)
            case Attach():
                entry.attaching = ()
                for request in sent.requests:
                    load = self._assigned(entry, request.digest)
                    if load is not None:
                        self._again(load, detail, now_s, tries=1, avoid=entry.engine)
            case Remove():
                entry.removing.pop(sent.digest, None)
                if sent.digest in entry.residents:
                    entry.residents[sent.digest].not_before_s = now_s + self.limits.remove_again_s
            case FetchState():
                entry.look_asked_s = None
                return
        self._look(entry, now_s)

    # How loads end

    def _arrived(self, entry: EngineEntry, digest: str, now_s: float) -> None:
        """The revision answers on this engine: whoever waited for it in its pools is done."""
        if not entry.serves(digest):
            return
        for pool in entry.pools:
            key = LoadKey(pool, digest)
            load = self.loads.get(key)
            if load is not None and (load.engine == entry.engine or load.phase != "attaching"):
                self._finish(load, now_s)
            self.interest.release(key, PREFETCHER)

    def _refuse(self, digest: str, detail: str, now_s: float) -> None:
        """No engine may load this, ever: all who wait are told."""
        self.refusals.remember(digest, detail, now_s)
        for load in [load for key, load in self.loads.items() if key.digest == digest]:
            self._fail(load, "bad_adapter", detail, None, now_s)

    def _again(
        self, load: Load, trouble: str, now_s: float, *, tries: int, avoid: str = "", delay_s: float | None = None
    ) -> None:
        """Back to the queue, or to its end when it has used up its tries."""
        self._unassign(load)
        load.tries += tries
        load.trouble = trouble
        if avoid:
            load.avoid.add(avoid)
        if load.tries >= self.limits.max_tries:
            detail = f"{load.wanted.label} could not be loaded after {load.tries} tries; the last: {trouble}"
            self._fail(load, "load_failed", detail, self.limits.min_retry_after_s, now_s)
            return
        if not self.interest.is_held(load.wanted.key):
            self._finish(load, now_s)
            return
        load.phase, load.since_s = "waiting", now_s
        load.not_before_s = now_s + (self.limits.retry_delay_s if delay_s is None else delay_s)
        self._note("load.returned", load.wanted, trouble=trouble, tries=load.tries)
        if load.not_before_s > now_s:
            self._resting[load.wanted.key] = load
        else:
            self._queue(load.wanted.key.pool).push(load, now_s)

    def _fail(self, load: Load, code: str, detail: str, retry_after_s: float | None, now_s: float) -> None:
        self._out.append(AnswerFailed(load.wanted, code, detail, retry_after_s))
        self.interest.drop(load.wanted.key)
        self._finish(load, now_s)

    def _finish(self, load: Load, now_s: float) -> None:
        key = load.wanted.key
        self._unassign(load)
        queue = self._queue(key.pool)
        if self.loads.get(key) is load:
            del self.loads[key]
            self._resting.pop(key, None)
            queue.remove(load)
            self._pace(key.pool).finished(now_s, are_others_waiting=len(queue) > 0)

    # Time passes

    def _tick(self, now_s: float) -> None:
        for entry in list(self.ledger.engines.values()):
            if now_s - entry.seen_s > self.limits.silence_s:
                self._lose(entry, "silent", now_s)
            elif entry.looked_s is None or now_s - entry.looked_s > self.limits.look_s:
                self._look(entry, now_s)
        thinned, ended = self.interest.expire(now_s)
        for key in thinned:
            if key in self.loads:
                self._refresh(self.loads[key], now_s)
        for key, ending in ended:
            load = self.loads.get(key)
            if load is None or load.phase == "attaching":
                continue
            if ending == "deadline":
                detail = f"{load.wanted.label} was not loaded in time" + (f"; {load.trouble}" if load.trouble else "")
                retry_after_s = self._pace(key.pool).retry_after_s(len(self._queue(key.pool)), self.limits)
                self._fail(load, "load_timeout", detail, retry_after_s, now_s)
            else:
                self._note("load.cancelled", load.wanted, phase=load.phase)
                self._finish(load, now_s)
        for key, load in list(self._resting.items()):
            if load.not_before_s <= now_s:
                del self._resting[key]
                self._queue(key.pool).push(load, now_s)
        for queue in self.queues.values():
            queue.age(now_s)
        self._forget(now_s)
        for entry in self.ledger.engines.values():
            self._thin_staged(entry)

    def _forget(self, now_s: float) -> None:
        """Names of revisions that nobody has wanted for long."""
        if len(self._wanted) > self.limits.refusal_memory:
            for key in list(self._wanted):
                if not self.interest.is_held(key) and self.demand.per_min(key.digest, now_s) < 1.0:
                    del self._wanted[key]

    def _thin_staged(self, entry: EngineEntry) -> None:
        surplus = len(entry.staged) - self.limits.max_staged
        if surplus > 0 and entry.is_usable:
            idle = [d for d in entry.staged if d not in entry.residents and d not in entry.assigned]
            for digest in sorted(idle, key=lambda digest: (entry.staged[digest].used_s, digest))[:surplus]:
                del entry.staged[digest]
                self._send(Unstage(entry.engine, entry.boot_id, self._next_command(), digest))

    # Getting on with it

    def _pump(self, now_s: float) -> None:
        for pool, queue in self.queues.items():
            if queue:
                self._place_waiting(pool, queue, now_s)
        for entry in self.ledger.engines.values():
            if entry.assigned:
                self._fill(entry, now_s)

    def _place_waiting(self, pool: str, queue: LoadQueue, now_s: float) -> None:
        engines = [entry for entry in self.ledger.in_pool(pool) if entry.is_usable]
        open_engines = [entry for entry in engines if self.room.has_room(entry, now_s)]
        missed: list[Load] = []
        while open_engines and len(missed) < MAX_MISSES:
            load = queue.pop()
            if load is None:
                break
            entry = self._choose(load, engines, open_engines)
            if entry is None:
                missed.append(load)
                continue
            self._assign(load, entry, now_s)
            if not self.room.has_room(entry, now_s):
                open_engines.remove(entry)
        for load in reversed(missed):
            queue.give_back(load, now_s)

    def _choose(self, load: Load, engines: list[EngineEntry], open_engines: list[EngineEntry]) -> EngineEntry | None:
        digest = load.wanted.key.digest
        if any(digest in entry.assigned or digest in entry.removing for entry in engines):
            return None  # Another pool's load brings it, or it must first be gone.
        able = [
            entry
            for entry in open_engines
            if load.wanted.rank <= entry.max_rank
            and (digest in entry.staged or digest in entry.staging or len(entry.staging) < self.limits.max_staging)
        ]
        liked = [entry for entry in able if entry.engine not in load.avoid]
        if not liked and all(entry.engine in load.avoid for entry in engines):
            liked = able  # Every engine has failed it once; its tries are counted.
        return self._place(digest, liked) if liked else None

    def _assign(self, load: Load, entry: EngineEntry, now_s: float) -> None:
        digest = load.wanted.key.digest
        entry.assigned[digest] = load.wanted.key
        load.engine, load.since_s = entry.engine, now_s
        if digest in entry.staged:
            load.phase = "staged"
            return
        load.phase = "staging"
        if digest not in entry.staging:
            load.command = entry.staging[digest] = self._next_command()
            self._send(Stage(entry.engine, entry.boot_id, load.command, digest))

    def _unassign(self, load: Load) -> None:
        entry = self.ledger.engines.get(load.engine)
        if entry is not None and entry.assigned.get(load.wanted.key.digest) == load.wanted.key:
            del entry.assigned[load.wanted.key.digest]
        load.engine = ""

    def _fill(self, entry: EngineEntry, now_s: float) -> None:
        """Attach all that is staged and fits, in one batch; make room for the rest."""
        ready = [load for load in map(self.loads.__getitem__, entry.assigned.values()) if load.phase == "staged"]
        ready.sort(key=lambda load: (CLASS_RANKS[load.load_class], load.deadline_s, load.wanted.key))
        for load in [load for load in ready if load.wanted.key.digest not in entry.staged]:
            ready.remove(load)
            self._again(load, f"{entry.engine} lost its staged copy", now_s, tries=1)
        if not ready or not entry.is_usable:
            return
        fits = min(max(0, entry.capacity - entry.occupied), self.limits.max_attach_batch)
        if not entry.attaching and fits:
            batch, ready = ready[:fits], ready[fits:]
            for load in batch:
                load.phase, load.since_s = "attaching", now_s
                entry.staged[load.wanted.key.digest].used_s = now_s
            entry.attaching = tuple(load.wanted.key.digest for load in batch)
            requests = tuple(AttachRequest(load.wanted.key.digest, load.wanted.label) for load in batch)
            self._send(Attach(entry.engine, entry.boot_id, self._next_command(), requests))
        shortage = entry.occupied + len(ready) - len(entry.removing) - entry.capacity
        for digest in self.room.victims(entry, shortage, now_s):
            entry.removing[digest] = self._next_command()
            name, timeout_s = entry.residents[digest].adapter_name, self.limits.remove_timeout_s
            self._send(Remove(entry.engine, entry.boot_id, entry.removing[digest], digest, name, timeout_s))
        if entry.occupied >= entry.capacity and not entry.removing and not entry.attaching:
            for load in [load for load in ready if now_s - load.since_s > self.limits.stuck_s]:
                self._again(load, f"no room on {entry.engine}", now_s, tries=0)

    # Small change

    def _assigned(self, entry: EngineEntry, digest: str) -> Load | None:
        key = entry.assigned.get(digest)
        return self.loads.get(key) if key is not None else None

    def _is_held_on(self, entry: EngineEntry, digest: str) -> bool:
        return any(self.interest.is_held(LoadKey(pool, digest)) for pool in entry.pools)

    def _queue(self, pool: str) -> LoadQueue:
        if pool not in self.queues:
            self.queues[pool] = LoadQueue(self.limits)
        return self.queues[pool]

    def _pace(self, pool: str) -> Pace:
        return self.paces.setdefault(pool, Pace())

    def _next_command(self) -> int:
        self._command += 1
        return self._command

    def _send(self, command: InFlight | Unstage) -> None:
        if not isinstance(command, Unstage):  # Whether it succeeded changes nothing; the next look tells.
            self._sent[command.command] = command
        self._out.append(command)

    def _note(self, happening: str, wanted: Wanted, **fields: str | float) -> None:
        about: dict[str, str | int | float | bool] = {
            "pool": wanted.key.pool, "revision": wanted.key.digest, "tenant": wanted.tenant, "policy": wanted.label
        }  # fmt: skip
        self._out.append(Noted(happening, about | fields))
