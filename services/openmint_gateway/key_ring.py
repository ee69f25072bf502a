"""Who calls: API keys, checked against the catalogue and remembered for a short time."""

import asyncio
import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from openmint.catalog import Catalog, keys
from openmint.clock import Clock
from openmint.errors import CatalogUnavailable, Forbidden, Unauthorised
from openmint_gateway.catalog_names import ANSWER_DEADLINE_S

FRESH_S = 30.0
"""A revoked key works for at most so long; asking the catalogue for every request would make it the bottleneck."""

REFUSED_FRESH_S = 5.0
STALE_S = 900.0
"""With the catalogue down, keys that were good answer for as long as known names do."""

MAX_KEYS = 50_000
MAX_KEY_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is, and what it may do. `key_id` is safe to log; the secret is nowhere."""

    tenant: str
    key_id: str
    scopes: frozenset[str]

    def need(self, scope: str) -> None:
        """Raises: Forbidden."""
        if scope not in self.scopes and "admin" not in self.scopes:
            raise Forbidden(f"this key lacks the scope {scope!r}")


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller | None
    checked_s: float


class KeyRing:
    """Keys by the digest of their text: the text itself is not kept, and a lookup compares digests only."""

    def __init__(self, catalog: Catalog, clock: Clock, pepper: bytes) -> None:
        self._catalog = catalog
        self._clock = clock
        self._pepper = pepper
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[Caller | None]] = {}

    async def authenticate(self, authorization: str) -> Caller:
        """The caller of `Authorization: Bearer id.secret`.

        Every wrong key, whatever is wrong with it, gives the same answer by the same path. Raises: Unauthorised,
        CatalogUnavailable.
        """
        kind, _, text = authorization.partition(" ")
        text = text.strip()
        if kind.lower() != "bearer" or not text or len(text) > MAX_KEY_LENGTH:
            raise Unauthorised("send an API key as Authorization: Bearer <key>")
        name = hashlib.sha256(text.encode()).digest()
        known = self._known.get(name)
        now_s = self._clock.monotonic_s()
        if known is not None and now_s - known.checked_s < (FRESH_S if known.caller else REFUSED_FRESH_S):
            return _caller_or_raise(known.caller)
        try:
            caller = await asyncio.shield(self._ask(name, text))
        except CatalogUnavailable:
            if known is not None and known.caller is not None and now_s - known.checked_s < STALE_S:
                return known.caller
            raise
        return _caller_or_raise(caller)

    def forget(self, key_id: str) -> None:
        """Drop a key that was revoked through this process, so that it ends here at once."""
        for name, known in list(self._known.items()):
            if known.caller is not None and known.caller.key_id == key_id:
                del self._known[name]

    def _ask(self, name: bytes, text: str) -> asyncio.Task[Caller | None]:
        task = self._asking.get(name)
        if task is None:
            task = asyncio.create_task(self._check(name, text))
            self._asking[name] = task
            task.add_done_callback(lambda done: self._asked(name, done))
        return task

    def _asked(self, name: bytes, task: asyncio.Task[Caller | None]) -> None:
        self._asking.pop(name, None)
        if not task.cancelled():
            task.exception()  # Looked at, so that a question nobody waits for any more makes no noise.

    async def _check(self, name: bytes, text: str) -> Caller | None:
        caller: Caller | None = None
        try:
            async with asyncio.timeout(ANSWER_DEADLINE_S), self._catalog.connection() as conn:
                key = await keys.authenticate(conn, text, pepper=self._pepper)
            caller = Caller(key.tenant, key.key_id, key.scopes)
        except Unauthorised:
            caller = None
        except TimeoutError as error:
            raise CatalogUnavailable("the key was not checked in time", retry_after_s=1.0) from error
        self._known[name] = _Known(caller, self._clock.monotonic_s())
        self._known.move_to_end(name)
        while len(self._known) > MAX_KEYS:
            self._known.popitem(last=False)
        return caller


def _caller_or_raise(caller: Caller | None) -> Caller:
    if caller is None:
        raise Unauthorised
    return caller
