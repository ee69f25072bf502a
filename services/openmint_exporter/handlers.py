"""What the exporter does when it hears a fact: a checkpoint of which a revision is wanted. The fact is only a hint."""

import asyncio

from openmint.events import CheckpointSaved


class Handlers:
    """Reacts to facts for an exporter."""

    def __init__(self, wake: asyncio.Event) -> None:
        self._wake = wake

    async def on_checkpoint_saved(self, event: CheckpointSaved) -> None:
        """Wake the claim loop; the catalogue decides who exports what."""
        if event.revision_id is not None:
            self._wake.set()
