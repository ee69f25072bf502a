"""Who may command this engine, and how far commands have been applied.

Only the scheduler with the highest epoch seen is obeyed. `last_command` tells it which of its commands the reported
list of residents reflects.
"""

import contextlib
from collections.abc import Generator

from openmint.engines.protocol import CommandStamp
from openmint.errors import StaleEpoch


class CommandGate:
    """Epoch and command numbers of one engine."""

    def __init__(self) -> None:
        self._epoch = 0
        self._highest = 0
        self._running: set[int] = set()

    @property
    def last_command(self) -> int:
        """Every attach and remove up to this number has been applied or refused."""
        return min(self._running) - 1 if self._running else self._highest

    def check(self, stamp: CommandStamp) -> None:
        """Let a command through that changes no list. Raises: StaleEpoch."""
        if stamp.epoch < self._epoch:
            raise StaleEpoch(f"epoch {stamp.epoch} commands, epoch {self._epoch} leads")
        if stamp.epoch > self._epoch:
            self._epoch = stamp.epoch
            self._highest = 0
            self._running.clear()

    @contextlib.contextmanager
    def applying(self, stamp: CommandStamp) -> Generator[None]:
        """Around a command that changes the list of residents. Raises: StaleEpoch."""
        self.check(stamp)
        self._running.add(stamp.command)
        try:
            yield
        finally:
            self._running.discard(stamp.command)
            if stamp.epoch == self._epoch:
                self._highest = max(self._highest, stamp.command)
