"""What the embedded servers share: a child process that survives its parent, found again by pid and start time.

A pid alone is not enough: after kill -9 it may belong to a zombie or to somebody else.
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from openmint.errors import OpenmintError
from openmint.settings import ENDPOINTS_FILE


class ServerFailed(OpenmintError):
    """An embedded server did not start."""

    code = "server_failed"


@dataclass(frozen=True, slots=True)
class ProcessMark:
    """A process that can be told from a later one with the same pid."""

    pid: int
    start_ticks: int
    """Field 22 of /proc/<pid>/stat; 0 where there is no /proc."""


def mark_process(pid: int) -> ProcessMark | None:
    """The mark of a living process; None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, 0)
            return ProcessMark(pid, 0)
        return None
    return None if fields[0] == "Z" else ProcessMark(pid, int(fields[19]))


def write_mark(path: Path, pid: int) -> None:
    """Remember a process that was just started."""
    mark = mark_process(pid)
    if mark is not None:
        path.write_text(json.dumps({"pid": mark.pid, "start_ticks": mark.start_ticks}))


def read_mark(path: Path) -> ProcessMark | None:
    """The remembered process if it still lives as the same one."""
    try:
        body = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None
    remembered = ProcessMark(int(body["pid"]), int(body["start_ticks"]))
    return remembered if mark_process(remembered.pid) == remembered else None


def end_process(mark: ProcessMark, number: signal.Signals, timeout_s: float) -> None:
    """Send a signal and wait until the process is gone; SIGKILL after `timeout_s`."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(mark.pid, number)
    deadline = time.monotonic() + timeout_s
    while mark_process(mark.pid) == mark:
        _reap(mark.pid)
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(mark.pid, signal.SIGKILL)
            deadline = time.monotonic() + timeout_s
        time.sleep(0.01)
    _reap(mark.pid)


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def free_port() -> int:
    """A loopback port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kept_port(path: Path, wanted: int) -> int:
    """The port of this server: the wanted one, else the one it had before (clients reconnect to it), else a free one."""
    if wanted:
        return wanted
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    port = free_port()
    path.write_text(str(port))
    return port


def kept_secret(path: Path) -> str:
    """A password made once and kept in a file that only its owner reads."""
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(24))
    return path.read_text().strip()


def publish_endpoints(state_dir: Path, entries: dict[str, str]) -> None:
    """Add to the endpoints file, from which `CommonSettings.resolve` fills in addresses. Mode 0600, replaced whole."""
    path = state_dir / ENDPOINTS_FILE
    body: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    temporary = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({**body, **entries}, file, indent=1)
    temporary.replace(path)
