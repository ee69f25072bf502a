"""From `tenant/policy@selector` to one revision: names in memory, filled from the catalogue, kept true by the feed.

An entry knows the version of its alias. A move that was heard of is a floor: nothing below it is ever answered, not
even by a fill that was under way when it was heard.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Protocol

from openmint.catalog.resolution import Resolution
from openmint.catalog.rows import RevisionState
from openmint.clock import Clock
from openmint.errors import CatalogUnavailable, NotFound, OpenmintError, Quarantined
from openmint.events import AliasMoved
from openmint.identifiers import ByAlias, ByStep, PolicyModel, PolicyName

FEED_SILENT_S = 1.0
RECHECK_S = 5.0
"""With the feed silent for a second, an entry older than this is checked again."""

STEP_FRESH_S = 5.0
"""`@step-400` means the newest revision of that step, of which no feed tells."""

ABSENT_FRESH_S = 2.0

FILL_TRIES = 8
"""A fill that a move has overtaken is asked again; the catalogue is never behind its own facts for long."""

STALE_S = 900.0
"""With the catalogue down too, a known name answers for at most 15 minutes."""


class Source(Protocol):
    """Where names are filled from: the catalogue."""

    async def resolve(self, name: PolicyModel) -> Resolution:
        """Raises: NotFound, Quarantined, NotEligible, CatalogUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Resolved:
    """The revision of one request; it never changes for that request."""

    revision: Resolution
    is_stale: bool = False


@dataclass(slots=True)
class _Entry:
    revision: Resolution
    checked_s: float
    is_suspect: bool = False
    """Something of the policy has changed: ask the catalogue before answering from this again."""
    is_barred: bool = False
    """The revision was quarantined or retired."""


@dataclass(frozen=True, slots=True)
class _Absent:
    error: OpenmintError
    checked_s: float


class Resolver:
    """The names that this process knows."""

    def __init__(self, source: Source, clock: Clock, *, names: int = 200_000, absent_names: int = 50_000) -> None:
        self._source = source
        self._clock = clock
        self._names = names
        self._absent_names = absent_names
        self._entries: OrderedDict[PolicyModel, _Entry] = OrderedDict()
        self._absent: OrderedDict[PolicyModel, _Absent] = OrderedDict()
        self._fills: dict[PolicyModel, asyncio.Task[Resolution]] = {}
        self._floors: OrderedDict[PolicyModel, int] = OrderedDict()
        self._of_policy: dict[tuple[str, str], set[PolicyModel]] = {}
        self._moved = asyncio.Condition()
        self._feed_heard_s = float("-inf")
        self._feed_since_s: float | None = None
        self.hits = 0
        self.misses = 0

    @property
    def known(self) -> int:
        """How many names are in memory."""
        return len(self._entries)

    def heard(self) -> None:
        """The feed is alive: whatever it would have told until now has been told."""
        self._feed_heard_s = self._clock.monotonic_s()
        if self._feed_since_s is None:
            self._feed_since_s = self._feed_heard_s

    async def resolve(self, name: PolicyModel) -> Resolved:
        """The revision that the name means now.

        Raises: NotFound, Quarantined, NotEligible, CatalogUnavailable when the name is not known well enough.
        """
        entry = self._entries.get(name)
        if entry is not None and self._is_fresh(name, entry):
            self.hits += 1
            self._entries.move_to_end(name)
            return Resolved(entry.revision)
        absent = self._absent.get(name)
        if absent is not None and self._clock.monotonic_s() - absent.checked_s < ABSENT_FRESH_S:
            self.hits += 1
            raise absent.error
        self.misses += 1
        try:
            return Resolved(await asyncio.shield(self._fill(name)))
        except CatalogUnavailable:
            return self._answer_stale(name)

    async def move(self, moved: AliasMoved) -> None:
        """An alias has moved. Only a higher version than the one that is known applies."""
        name = alias_name(moved)
        if self._floors.get(name, 0) >= moved.alias_version:
            return
        self._floors[name] = moved.alias_version
        self._floors.move_to_end(name)
        while len(self._floors) > self._names:
            self._floors.popitem(last=False)
        self._absent.pop(name, None)
        entry = self._entries.get(name)
        if entry is not None and (entry.revision.alias_version or 0) < moved.alias_version:
            entry.revision = _moved_to(entry.revision, moved)
            entry.is_suspect = True
            entry.is_barred = False
        async with self._moved:
            self._moved.notify_all()

    def doubt(self, tenant: str, policy: str, barred_digest: str | None = None) -> None:
        """A revision of the policy changed its state: check each of its names again before the next answer.

        `barred_digest` was taken out of use: it is not answered from even while the catalogue is down.
        """
        for name in self._of_policy.get((tenant, policy), ()):
            entry = self._entries[name]
            entry.is_suspect = True
            entry.is_barred = entry.is_barred or entry.revision.digest == barred_digest

    async def wait_visible(self, name: PolicyModel, alias_version: int, timeout_s: float) -> bool:
        """True once a move of at least this version has been heard here; False after `timeout_s`."""

        def is_visible() -> bool:
            return self._floors.get(name, 0) >= alias_version

        try:
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(is_visible)
        except TimeoutError:
            return False
        return True

    def _is_fresh(self, name: PolicyModel, entry: _Entry) -> bool:
        if entry.is_suspect:
            return False
        now_s = self._clock.monotonic_s()
        age_s = now_s - entry.checked_s
        if now_s - self._feed_heard_s >= FEED_SILENT_S and age_s >= RECHECK_S:
            return False
        if self._feed_since_s is not None and entry.checked_s < self._feed_since_s:
            return False  # Looked up before the feed was there to tell of a move.
        return not isinstance(name.selector, ByStep) or age_s < STEP_FRESH_S

    def _fill(self, name: PolicyModel) -> asyncio.Task[Resolution]:
        task = self._fills.get(name)
        if task is None:
            task = asyncio.create_task(self._ask(name))
            self._fills[name] = task
            task.add_done_callback(lambda done: self._filled(name, done))
        return task

    def _filled(self, name: PolicyModel, task: asyncio.Task[Resolution]) -> None:
        self._fills.pop(name, None)
        if not task.cancelled():
            task.exception()  # Looked at here, so that a fill nobody waits for any more makes no noise.

    async def _ask(self, name: PolicyModel) -> Resolution:
        for _ in range(FILL_TRIES):
            asked_s = self._clock.monotonic_s()
            entry_before = self._entries.get(name)
            if entry_before is not None:
                entry_before.is_suspect = False  # Set again if something changes while the question is out.
            try:
                revision = await self._source.resolve(name)
            except (NotFound, Quarantined) as error:
                self._forget(name)
                self._remember_absent(name, error)
                raise
            except CatalogUnavailable:
                if entry_before is not None:
                    entry_before.is_suspect = True
                raise
            except OpenmintError:
                self._forget(name)
                raise
            if self._is_overtaken(name, revision) or (entry_before is not None and entry_before.is_suspect):
                continue
            self._remember(name, _Entry(revision, asked_s))
            return revision
        raise CatalogUnavailable(f"{name} moves faster than it can be looked up", retry_after_s=1.0)

    def _is_overtaken(self, name: PolicyModel, revision: Resolution) -> bool:
        entry = self._entries.get(name)
        known = max(self._floors.get(name, 0), (entry.revision.alias_version or 0) if entry is not None else 0)
        return (revision.alias_version or 0) < known

    def _answer_stale(self, name: PolicyModel) -> Resolved:
        entry = self._entries.get(name)
        if entry is None or self._clock.monotonic_s() - entry.checked_s > STALE_S:
            raise CatalogUnavailable(f"{name} can't be looked up at this moment", retry_after_s=2.0)
        if entry.is_barred:
            raise Quarantined(f"{name} was taken out of use", field="model")
        return Resolved(entry.revision, is_stale=True)

    def _remember(self, name: PolicyModel, entry: _Entry) -> None:
        self._absent.pop(name, None)
        self._entries[name] = entry
        self._entries.move_to_end(name)
        self._of_policy.setdefault((name.policy.tenant, name.policy.name), set()).add(name)
        while len(self._entries) > self._names:
            oldest, _ = self._entries.popitem(last=False)
            self._forget_name(oldest)

    def _remember_absent(self, name: PolicyModel, error: OpenmintError) -> None:
        self._absent[name] = _Absent(error, self._clock.monotonic_s())
        self._absent.move_to_end(name)
        while len(self._absent) > self._absent_names:
            self._absent.popitem(last=False)

    def _forget(self, name: PolicyModel) -> None:
        if self._entries.pop(name, None) is not None:
            self._forget_name(name)

    def _forget_name(self, name: PolicyModel) -> None:
        key = (name.policy.tenant, name.policy.name)
        names = self._of_policy.get(key)
        if names is not None:
            names.discard(name)
            if not names:
                del self._of_policy[key]


def alias_name(moved: AliasMoved) -> PolicyModel:
    """The model name whose meaning a move changes."""
    return PolicyModel(PolicyName(moved.tenant, moved.policy), ByAlias(moved.alias))


def _moved_to(revision: Resolution, moved: AliasMoved) -> Resolution:
    """What the fact itself says of the new revision; rank and size stay a guess until the catalogue answers."""
    target = max(moved.targets, key=lambda target: target.weight)
    return replace(
        revision,
        revision_id=target.revision_id,
        digest=target.digest,
        number=target.number,
        state=RevisionState.ELIGIBLE,
        alias_version=moved.alias_version,
        targets=tuple(moved.targets),
    )
