"""What this engine tells the bus: a heartbeat every second, and residency facts as they happen.

Both are soft state: nothing waits for them, and whoever missed one reads the list from the control port.
"""

import asyncio
from collections.abc import Callable
from typing import Literal, Protocol

import structlog
from pydantic import BaseModel

from openmint.events.base import Fact
from openmint.events.serving import AdapterGone, AdapterResident, EngineHeartbeat, EngineJoined, EngineLeft
from openmint_engine_host.supervisor import Boot

log = structlog.get_logger()

HEARTBEAT_EVERY_S = 1.0

GoneReason = Literal["evicted", "drained", "failed", "quarantined"]


class Announcer(Protocol):
    """The part of the bus that is used here (`openmint.bus.connection.Bus`)."""

    async def publish_soft(self, fact: Fact) -> bool:
        """Publish to a stream; False when that failed."""
        ...

    async def publish_core(self, subject: str, model: BaseModel) -> None:
        """Publish without acknowledgement."""
        ...


class Silence:
    """An announcer for an engine without a bus."""

    async def publish_soft(self, fact: Fact) -> bool:
        """Tell nobody."""
        return True

    async def publish_core(self, subject: str, model: BaseModel) -> None:
        """Tell nobody."""


class ResidencyFeed:
    """Facts about one engine, with a number that rises within each boot."""

    def __init__(self, announcer: Announcer, engine: str, base: str, base_digest: str, pools: tuple[str, ...]) -> None:
        self._announcer = announcer
        self._engine = engine
        self._base = base
        self._base_digest = base_digest
        self._pools = list(pools)
        self._sequence = 0

    async def joined(self, boot: Boot, control_url: str) -> None:
        """The engine is up."""
        self._sequence = 0
        await self._publish(
            EngineJoined(
                base=self._base,
                base_digest=self._base_digest,
                engine=self._engine,
                boot_id=boot.boot_id,
                pools=self._pools,
                url=boot.url,
                control_url=control_url,
                build=boot.build,
            )
        )

    async def left(self, boot: Boot, reason: str) -> None:
        """The engine is gone, and its residents with it."""
        await self._publish(EngineLeft(base=self._base, engine=self._engine, boot_id=boot.boot_id, reason=reason))

    async def resident(self, boot: Boot, digest: str, adapter_name: str, stage_ms: float, attach_ms: float) -> None:
        """An adapter answers from now on."""
        await self._publish(
            AdapterResident(
                base=self._base,
                engine=self._engine,
                boot_id=boot.boot_id,
                sequence=self._next(),
                digest=digest,
                adapter_name=adapter_name,
                url=boot.url,
                pools=self._pools,
                stage_ms=stage_ms,
                attach_ms=attach_ms,
            )
        )

    async def gone(self, boot: Boot, digest: str, adapter_name: str, reason: GoneReason = "evicted") -> None:
        """An adapter answers no more."""
        await self._publish(
            AdapterGone(
                base=self._base,
                engine=self._engine,
                boot_id=boot.boot_id,
                sequence=self._next(),
                digest=digest,
                adapter_name=adapter_name,
                reason=reason,
            )
        )

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    async def _publish(self, fact: Fact) -> None:
        if not await self._announcer.publish_soft(fact):
            log.warning("residency.not_published", fact=fact.event_type())


async def beat(announcer: Announcer, heartbeat: Callable[[], EngineHeartbeat | None]) -> None:
    """Send a heartbeat every second while there is one to send, until cancelled."""
    while True:
        message = heartbeat()
        if message is not None:
            try:
                await announcer.publish_core(message.subject(), message)
            except Exception as error:  # the bus may be away for a while; the next second is the retry
                log.warning("heartbeat.not_published", detail=str(error))
        await asyncio.sleep(HEARTBEAT_EVERY_S)
