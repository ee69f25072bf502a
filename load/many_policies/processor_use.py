"""Where the cores' time goes while a row runs."""

import os
import time
from collections.abc import Mapping

import psutil


class ProcessorUse:
    """CPU seconds of process families. A process that ends in between is counted up to the last look only."""

    def __init__(self, parts: Mapping[str, int]) -> None:
        """`parts`: pid by name; children count with their parent. This process is `client`, alone."""
        self._parts = dict(parts)
        self._started_s = time.monotonic()
        self._before = self._seconds()

    def cores(self) -> dict[str, float]:
        """Cores used on average since the start, by part."""
        wall_s = time.monotonic() - self._started_s
        now = self._seconds()
        return {name: round((now[name] - self._before.get(name, 0.0)) / wall_s, 3) for name in now}

    def _seconds(self) -> dict[str, float]:
        own = os.times()
        found = {"client": own.user + own.system}
        for name, pid in self._parts.items():
            try:
                process = psutil.Process(pid)
                family = [process, *process.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
            found[name] = sum(_used(member) for member in family)
        return found


def _used(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system
