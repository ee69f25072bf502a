"""Who may use the engine now: adapters by name, sequences in flight, tenants' shares. No I/O.

Queues form in the gateway, never inside vLLM: what would wait here is refused with `busy` before any work is done.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["busy", "absent"]

BASE_DIGEST = "base"
"""Stands in the revision header of an answer by the base model."""


@dataclass(slots=True)
class ResidentAdapter:
    """An adapter that the worker holds and the front knows by name."""

    name: str
    digest: str
    adapter_id: int
    path: str
    adapter_bytes: int
    in_flight: int = 0
    served: int = 0
    is_draining: bool = False
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while nothing of it is in flight."""

    def __post_init__(self) -> None:
        self.idle.set()


@dataclass(frozen=True, slots=True)
class Ticket:
    """An admitted request; give it back with `release`, once, whatever became of the request."""

    model: str
    digest: str
    tenant: str
    sequences: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Nothing was done for this request; another engine, or this one later, may be asked."""

    verdict: Verdict
    reason: str


class Admission:
    """Counts of one boot."""

    def __init__(self, base: str, max_running: int, margin: int, tenant_share: float) -> None:
        self.base = base
        self.limit = max_running + margin
        self.tenant_limit = max(1, round(self.limit * tenant_share))
        self.max_running = max_running
        self.in_flight = 0
        self.list_version = 0
        self.closed_because = "the engine is starting"
        """Not empty while nothing at all is admitted."""
        self._adapters: dict[str, ResidentAdapter] = {}
        self._by_tenant: Counter[str] = Counter()
        self.admitted = 0
        self.refused: Counter[str] = Counter()
        """Requests sent back, by reason: `absent`, `closed`, `full`, `tenant_share`."""

    def admit(self, model: str, tenant: str, sequences: int = 1) -> Ticket | Refusal:
        """Take room for a request of so many sequences, or say why not.

        More sequences than a tenant may have at all count as just that many: the request then needs an idle engine.
        """
        adapter = self._adapters.get(model)
        if model != self.base and (adapter is None or adapter.is_draining):
            return self._refuse("absent", "absent", f"{model} is not on this engine")
        if self.closed_because:
            return self._refuse("closed", "busy", self.closed_because)
        sequences = min(sequences, self.tenant_limit)
        if self.in_flight + sequences > self.limit:
            return self._refuse("full", "busy", f"{self.in_flight} of {self.limit} sequences are in flight")
        if self._by_tenant[tenant] + sequences > self.tenant_limit:
            detail = f"tenant {tenant} has {self._by_tenant[tenant]} of its {self.tenant_limit} sequences"
            return self._refuse("tenant_share", "busy", detail)
        self.admitted += 1
        self.in_flight += sequences
        self._by_tenant[tenant] += sequences
        self.hold(adapter, sequences)
        if adapter is not None:
            adapter.served += 1
        return Ticket(model, adapter.digest if adapter else BASE_DIGEST, tenant, sequences)

    def _refuse(self, kind: str, verdict: Verdict, reason: str) -> Refusal:
        self.refused[kind] += 1
        return Refusal(verdict, reason)

    def release(self, ticket: Ticket) -> None:
        """Give back what `admit` took."""
        self.in_flight -= ticket.sequences
        self._by_tenant[ticket.tenant] -= ticket.sequences
        if self._by_tenant[ticket.tenant] <= 0:
            del self._by_tenant[ticket.tenant]
        self.let_go(self._adapters.get(ticket.model), ticket.sequences)

    def hold(self, adapter: ResidentAdapter | None, sequences: int = 1) -> None:
        """Keep an adapter from being removed; nothing for the base."""
        if adapter is not None:
            adapter.in_flight += sequences
            adapter.idle.clear()

    def let_go(self, adapter: ResidentAdapter | None, sequences: int = 1) -> None:
        """End a `hold`."""
        if adapter is not None:
            adapter.in_flight -= sequences
            if adapter.in_flight <= 0:
                adapter.idle.set()

    def add(self, adapter: ResidentAdapter) -> None:
        """Admit requests to an adapter from now on."""
        self._adapters[adapter.name] = adapter
        self.list_version += 1

    def discard(self, name: str) -> None:
        """Forget an adapter that the worker has freed."""
        if self._adapters.pop(name, None):
            self.list_version += 1

    def find(self, name: str) -> ResidentAdapter | None:
        """The adapter of that name, draining or not."""
        return self._adapters.get(name)

    def find_digest(self, digest: str) -> ResidentAdapter | None:
        """An adapter of that revision that is not draining."""
        return next((a for a in self._adapters.values() if a.digest == digest and not a.is_draining), None)

    def adapters(self) -> Iterable[ResidentAdapter]:
        """All adapters, oldest load first."""
        return self._adapters.values()

    def list_hash(self) -> str:
        """16 hex characters over the names; equal lists have equal hashes."""
        return hashlib.sha256("\n".join(sorted(self._adapters)).encode()).hexdigest()[:16]
