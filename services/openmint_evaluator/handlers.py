"""What the evaluator does when it hears that a revision was exported: look for work now. The fact is only a hint."""

from collections.abc import Callable

from openmint.events import RevisionExported


class Handlers:
    """Reacts to facts."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    async def on_revision_exported(self, event: RevisionExported) -> None:
        """Wake the worker; the catalogue decides who gets the revision."""
        self._wake()
