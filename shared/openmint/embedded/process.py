"""One server as a child process that survives its starter: found again by its record, never mistaken for another."""

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from openmint.errors import OpenmintError

POLL_S = 0.01


class ServerNotStarted(OpenmintError):
    """An embedded server did not start."""

    code = "server_not_started"


class ServerProcess:
    """A process and the record of it on disk: its id and the time it began, since ids are used again."""

    def __init__(self, name: str, record: Path, log_file: Path) -> None:
        self.name = name
        self._record = record
        self._log_file = log_file
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The id of the running process, or None."""
        found = self._find()
        return found.pid if found is not None else None

    def is_running(self) -> bool:
        """True while the process lives; a zombie does not."""
        return self._find() is not None

    def spawn(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        user: int | None = None,
        group: int | None = None,
        extra_groups: Sequence[int] | None = None,
    ) -> None:
        """Start the process in a session of its own, its output going to the log file."""
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with self._log_file.open("ab") as output:
            child = subprocess.Popen(
                list(argv),
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd="/",
                user=user,
                group=group,
                extra_groups=extra_groups,
            )
        self._child = child
        with contextlib.suppress(psutil.NoSuchProcess):
            began = psutil.Process(child.pid).create_time()
            write_private(self._record, json.dumps({"pid": child.pid, "began": began}))

    def send(self, number: int) -> None:
        """Send a signal if the process lives."""
        found = self._find()
        if found is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                found.send_signal(number)

    def wait_gone(self, timeout_s: float) -> bool:
        """Wait until the process is gone; False when it still lives after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while self.is_running():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        self._record.unlink(missing_ok=True)
        return True

    def last_words(self, lines: int = 8) -> str:
        """The end of the log, for an error message."""
        try:
            with self._log_file.open("rb") as file:
                file.seek(max(0, self._log_file.stat().st_size - 8192))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        except OSError:
            return "(no log)"

    def _find(self) -> psutil.Process | None:
        if self._child is not None:
            if self._child.poll() is not None:
                self._child = None
                return None
            return psutil.Process(self._child.pid)
        try:
            known = json.loads(self._record.read_text())
            process = psutil.Process(int(known["pid"]))
            is_it = abs(process.create_time() - float(known["began"])) < 1.0
            return process if is_it and process.status() != psutil.STATUS_ZOMBIE else None
        except (OSError, ValueError, KeyError, psutil.Error):
            return None


def free_port(preferred: int = 0) -> int:
    """`preferred` if nobody listens on it, otherwise any free port of the loopback."""
    for port in (preferred, 0) if preferred else (0,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ServerNotStarted("the loopback has no free port")


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step; only its owner can read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
