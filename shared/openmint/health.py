"""Is this part able to do its work? Each service writes the answer to a file; a probe reads it.

A file instead of a port: the trainer and the exporter listen nowhere, and a probe must not depend on an event loop that
is the very thing in doubt. A part that stops writing is unhealthy after STALE_AFTER_S.
"""

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from pathlib import Path

from openmint.endings import end

WRITE_EVERY_S = 3.0
STALE_AFTER_S = 20.0
"""Six missed writes: a busy machine is not a dead part."""

CHECK_TIMEOUT_S = 2.0

Check = Callable[[], Awaitable[bool]]


def health_file() -> Path:
    """Where this part writes: OPENMINT_HEALTH_FILE, or one file in the temporary folder (a container has its own)."""
    return Path(os.environ.get("OPENMINT_HEALTH_FILE") or Path(tempfile.gettempdir()) / "openmint-health.json")


async def run_checks(checks: Mapping[str, Check]) -> dict[str, bool]:
    """Each check's answer; an error or CHECK_TIMEOUT_S without one is a no."""

    async def ask(check: Check) -> bool:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                return await check()
        except Exception:
            return False

    answers = await asyncio.gather(*(ask(check) for check in checks.values()))
    return dict(zip(checks, answers, strict=True))


@contextlib.asynccontextmanager
async def reporting_health(checks: Mapping[str, Check]) -> AsyncGenerator[None]:
    """Write the answers to the health file every few seconds while the block runs."""
    path = health_file()

    async def report() -> None:
        while True:
            body = {"at": time.time(), "checks": await run_checks(checks)}
            temporary = path.with_name(f"{path.name}.{os.getpid()}")
            temporary.write_text(json.dumps(body))
            temporary.replace(path)
            await asyncio.sleep(WRITE_EVERY_S)

    task = asyncio.create_task(report())
    try:
        yield
    finally:
        await end(task)
        path.unlink(missing_ok=True)


def read_problems(path: Path, now: float) -> list[str]:
    """What is wrong according to the file; empty when the part is healthy."""
    try:
        body = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return [f"no health report at {path}"]
    age_s = now - float(body["at"])
    if age_s > STALE_AFTER_S:
        return [f"the last health report is {age_s:.0f} s old"]
    return [f"{name} does not answer" for name, is_well in body["checks"].items() if not is_well]


def main() -> int:
    """Exit code 0 when this container's part is healthy."""
    found = read_problems(health_file(), time.time())
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
