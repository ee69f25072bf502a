"""What the trainer does when it hears a fact: a job was accepted, so look for work now. The fact is only a hint."""

import asyncio

from faststream.nats import NatsBroker

from openmint.bus.broker import fact_subscriber
from openmint.events import JobAccepted


def subscribe(broker: NatsBroker, base: str, wake: asyncio.Event) -> None:
    """Have accepted jobs of this base wake the claim loop; the catalogue decides who gets which."""

    @fact_subscriber(broker, "trainer", JobAccepted)
    async def on_job_accepted(event: JobAccepted) -> None:
        # Another base's trainer may have wanted this hint: it finds the job by itself within its poll interval.
        if event.base == base:
            wake.set()
