"""Peak memory of a whole local stack: proportional set sizes of all its processes, so that shared pages count once."""

import contextlib
import threading
from pathlib import Path

import psutil

from openmint.local_stack import StackDown, status

EVERY_S = 10.0
"""Summing the shared pages of gigabytes takes a core for most of a second."""


def stack_bytes(state_dir: Path) -> int:
    """What all processes of the stack take now; 0 when it is down."""
    try:
        seen = status(state_dir)
    except StackDown:
        return 0
    roots = {seen.supervisor_pid, *(part.pid for part in seen.parts if part.pid)}
    processes: dict[int, psutil.Process] = {}
    for pid in roots:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            processes[pid] = process
            processes |= {child.pid: child for child in process.children(recursive=True)}
    total = 0
    for process in processes.values():
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total


class MemoryWatch:
    """Samples in a thread of its own between `start` and `stop`."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._done = threading.Event()
        self._peak = 0
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def stop(self) -> float:
        """End; the peak in GiB."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        return self._peak / 2**30

    def _sample(self) -> None:
        while not self._done.is_set():
            self._peak = max(self._peak, stack_bytes(self._state_dir))
            self._done.wait(EVERY_S)
