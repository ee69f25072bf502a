"""A server that a scenario starts and surely ends."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from openmint.errors import EngineFailed

STOP_TIMEOUT_S = 30.0
LAST_WORDS = 2000


class ServerProcess:
    """A server in a session of its own; nothing of it stays behind."""

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path | None = None
    ) -> None:
        self._arguments, self._environment, self._folder = list(arguments), dict(environment), folder
        self._process: subprocess.Popen[bytes] | None = None
        self.log = log

    @property
    def pid(self) -> int:
        """Of the server, 0 while it is not running."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Start it with this process's environment but our own settings; `check` says whether it still runs."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("OPENMINT_")}
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._arguments,
                env={**clean, **self._environment},
                stdout=output,
                stderr=output,
                cwd=self._folder,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raises: EngineFailed with its last words when it has ended."""
        if self._process is None or self._process.poll() is not None:
            raise EngineFailed(f"{self._arguments[2]} ended: {self.log.read_text(errors='replace')[-LAST_WORDS:]}")

    def stop(self) -> None:
        """End it and everything that it started."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            family = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in family:
            if child.is_running():
                child.kill()
