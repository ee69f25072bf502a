"""Placements of one process: engines, what is on them, and who waits for something to appear. No I/O in here.

Facts are applied in the order of their sequence within a boot; heartbeats decide which boot of an engine is present;
an engine's own list repairs whatever was missed.
"""

import asyncio
import hashlib
from dataclasses import dataclass, field
from uuid import UUID

from openmint.engines.protocol import Resident
from openmint.engines.resident_list import ResidentList
from openmint.events import AdapterGone, AdapterResident, EngineHeartbeat, EngineLeft

SILENCE_S = 5.0
"""An engine without heartbeat, sent every second, for so long is gone."""

SETTLE_S = 2.0
"""What a fact told so recently is not overruled by a list: hosts answer lists from a pulse of up to a second ago."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where requests for a revision (or for the base itself) may go, and under which model name."""

    engine: str
    url: str
    adapter_name: str
    boot_id: UUID
    max_running: int = 0
    """Sequences that one step of the engine takes at most; 0 when it has not told."""


@dataclass(slots=True)
class KnownAdapter:
    """What was last told of a revision on an engine; `adapter_name` is empty once it is gone."""

    adapter_name: str
    sequence: int
    told_s: float


@dataclass(slots=True)
class KnownEngine:
    """One boot of an engine."""

    engine: str
    base: str
    boot_id: UUID
    pools: tuple[str, ...]
    url: str
    seen_s: float
    control_url: str = ""
    max_running: int = 0
    is_ready: bool = True
    list_hash: str = ""
    is_fetching: bool = False
    adapters: dict[str, KnownAdapter] = field(default_factory=dict[str, KnownAdapter])

    def known_hash(self) -> str:
        """The hash of the names that we know, as engines make it; engines may also use another, then we fetch."""
        names = sorted(adapter.adapter_name for adapter in self.adapters.values() if adapter.adapter_name)
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]

    def has_unsettled(self, now_s: float) -> bool:
        """True while some fact is so new that a list does not overrule it."""
        return any(adapter.told_s > now_s - SETTLE_S for adapter in self.adapters.values())


PlaceKey = tuple[str, str, str]
"""Base, pool, digest; an empty digest stands for the base itself."""


class ResidencyIndex:
    """Placements by base, pool and digest; one dictionary look-up to read."""

    def __init__(self) -> None:
        self.engines: dict[str, KnownEngine] = {}
        self._places: dict[PlaceKey, dict[str, Placement]] = {}
        self._expected: dict[PlaceKey, set[asyncio.Future[Placement]]] = {}

    def placements(self, key: PlaceKey) -> list[Placement]:
        """The engines where it answers."""
        return list(self._places.get(key, {}).values())

    def has_engine(self, base: str, pool: str) -> bool:
        """True when an engine of the pool is alive, ready or not."""
        return any(engine.base == base and pool in engine.pools for engine in self.engines.values())

    def expect(self, key: PlaceKey) -> asyncio.Future[Placement]:
        """Resolves when the next placement appears; cancel it when nobody waits any more."""
        future: asyncio.Future[Placement] = asyncio.get_running_loop().create_future()
        waiting = self._expected.setdefault(key, set())
        waiting.add(future)
        future.add_done_callback(lambda done: self._expected_no_more(key, done))
        return future

    def heartbeat(self, beat: EngineHeartbeat, now_s: float) -> KnownEngine:
        """Take in a sign of life."""
        known = self.engines.get(beat.engine)
        if known is None or known.boot_id != beat.boot_id:
            self.forget(beat.engine)
            known = KnownEngine(
                beat.engine, beat.base, beat.boot_id, tuple(beat.pools), beat.url, now_s, max_running=beat.max_running
            )
            self.engines[beat.engine] = known
        told = (beat.state == "ready", tuple(beat.pools), beat.url, beat.max_running)
        shown = (known.is_ready, known.pools, known.url, known.max_running)
        is_changed = told != shown or not self._is_shown(known)
        known.seen_s, known.control_url = now_s, beat.control_url
        if is_changed:
            self._hide(known)
            known.is_ready, known.pools, known.url, known.max_running = told
            self._show(known)
        return known

    def resident(self, fact: AdapterResident, now_s: float) -> None:
        """An engine's host told that a revision answers."""
        known = self.engines.get(fact.engine)
        if known is None:
            known = KnownEngine(fact.engine, fact.base, fact.boot_id, tuple(fact.pools), fact.url, now_s)
            self.engines[fact.engine] = known
            self._show(known)
        if known.boot_id != fact.boot_id:
            return  # Another boot: the heartbeats decide which is the present one, and bring its list.
        former = known.adapters.get(fact.digest)
        if former is None or fact.sequence > former.sequence:
            self._set(known, fact.digest, KnownAdapter(fact.adapter_name, fact.sequence, now_s))

    def gone(self, fact: AdapterGone, now_s: float) -> None:
        """An engine's host told that a load of a revision answers no more."""
        known = self.engines.get(fact.engine)
        if known is None or known.boot_id != fact.boot_id:
            return
        former = known.adapters.get(fact.digest)
        if former is None or fact.sequence > former.sequence:
            self._set(known, fact.digest, KnownAdapter("", fact.sequence, now_s))

    def left(self, fact: EngineLeft) -> None:
        """A boot of an engine is over."""
        known = self.engines.get(fact.engine)
        if known is not None and known.boot_id == fact.boot_id:
            self.forget(fact.engine)

    def listed(self, residents: ResidentList, asked_s: float, now_s: float) -> None:
        """Take in an engine's own list, except where a fact is newer."""
        known = self.engines.get(residents.engine)
        if known is None or known.boot_id != residents.boot_id:
            return
        listed: dict[str, Resident] = {resident.digest: resident for resident in residents.residents}
        for digest, adapter in list(known.adapters.items()):
            if adapter.told_s > asked_s - SETTLE_S:
                listed.pop(digest, None)
            elif digest not in listed:
                self._set(known, digest, None)
        for digest, resident in listed.items():
            former = known.adapters.get(digest)
            if former is None or former.adapter_name != resident.adapter_name:
                sequence = former.sequence if former else 0
                self._set(known, digest, KnownAdapter(resident.adapter_name, sequence, asked_s - SETTLE_S))

    def forget(self, engine: str) -> None:
        """Drop an engine and all that is on it."""
        known = self.engines.pop(engine, None)
        if known is not None:
            self._hide(known)

    def forget_silent(self, now_s: float) -> list[str]:
        """Drop the engines that have been silent for too long; returns their names."""
        silent = [name for name, engine in self.engines.items() if now_s - engine.seen_s > SILENCE_S]
        for name in silent:
            self.forget(name)
        return silent

    def give_time(self, now_s: float) -> None:
        """Count every engine as heard from now."""
        for engine in self.engines.values():
            engine.seen_s = max(engine.seen_s, now_s)

    def _set(self, known: KnownEngine, digest: str, adapter: KnownAdapter | None) -> None:
        if adapter is None:
            known.adapters.pop(digest, None)
        else:
            known.adapters[digest] = adapter
        for pool in known.pools:
            if known.is_ready and adapter is not None and adapter.adapter_name:
                self._put(known, (known.base, pool, digest), adapter.adapter_name)
            else:
                self._take(known, (known.base, pool, digest))

    def _is_shown(self, known: KnownEngine) -> bool:
        return all(known.engine in self._places.get((known.base, pool, ""), {}) for pool in known.pools)

    def _show(self, known: KnownEngine) -> None:
        if known.is_ready:
            for pool in known.pools:
                self._put(known, (known.base, pool, ""), known.base)
                for digest, adapter in known.adapters.items():
                    if adapter.adapter_name:
                        self._put(known, (known.base, pool, digest), adapter.adapter_name)

    def _hide(self, known: KnownEngine) -> None:
        for pool in known.pools:
            for digest in ("", *known.adapters):
                self._take(known, (known.base, pool, digest))

    def _put(self, known: KnownEngine, key: PlaceKey, adapter_name: str) -> None:
        placement = Placement(known.engine, known.url, adapter_name, known.boot_id, known.max_running)
        self._places.setdefault(key, {})[known.engine] = placement
        for future in list(self._expected.get(key, ())):
            if not future.done():
                future.set_result(placement)

    def _take(self, known: KnownEngine, key: PlaceKey) -> None:
        places = self._places.get(key)
        if places is not None:
            places.pop(known.engine, None)
            if not places:
                del self._places[key]

    def _expected_no_more(self, key: PlaceKey, future: asyncio.Future[Placement]) -> None:
        waiting = self._expected.get(key)
        if waiting is not None:
            waiting.discard(future)
            if not waiting:
                del self._expected[key]
