"""What the trainer does when it hears a fact: a job was accepted, so look for work now. The fact is only a hint."""

import asyncio

from openmint.events import JobAccepted


class Handlers:
    """Reacts to facts for the trainer of one base."""

    def __init__(self, base: str, wake: asyncio.Event) -> None:
        self._base = base
        self._wake = wake

    async def on_job_accepted(self, event: JobAccepted) -> None:
        """Wake the claim loop; the catalogue decides who gets the job."""
        if event.base == self._base:
            self._wake.set()
