"""This process's own ear for moved aliases and withdrawn revisions, which keeps its names true."""

import asyncio
import contextlib

from nats.errors import Error as NatsError

from openmint.bus.connection import Bus
from openmint.bus.tail import Tail
from openmint.events import AliasMoved, RevisionQuarantined, RevisionRetired
from openmint_gateway.resolver import Resolver

BEAT_S = 0.25
"""Four times within the second after which a silent feed counts as lost."""


class AliasFeed:
    """Feeds a resolver. `run` it."""

    def __init__(self, bus: Bus, resolver: Resolver) -> None:
        self._bus = bus
        self._resolver = resolver
        self._tail = Tail(bus, [AliasMoved, RevisionQuarantined, RevisionRetired], self._on_fact, stream="EVENTS")

    async def run(self) -> None:
        """Listen from now on, until cancelled; a lost feed is taken up again where it was."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tail.run())
            tasks.create_task(self._listen_to_the_server())

    async def _on_fact(self, event: AliasMoved | RevisionQuarantined | RevisionRetired) -> None:
        if isinstance(event, AliasMoved):
            await self._resolver.move(event)
        else:
            self._resolver.doubt(event.tenant, event.policy, event.digest)

    async def _listen_to_the_server(self) -> None:
        """While our consumer is bound, a server that answers has sent us what it had for us before."""
        while True:
            with contextlib.suppress(NatsError, TimeoutError, OSError):
                if self._tail.attached.is_set():
                    await self._bus.nc.flush(timeout=1)
                    self._resolver.heard()
            await asyncio.sleep(BEAT_S)
