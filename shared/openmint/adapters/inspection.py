"""The checks of an adapter, run in a child process with limits, so that no file can hurt the process that asks.

A child lives for many inspections (starting Python and numpy costs ten times what one adapter does) and is replaced
when it broke, ran out of time, or has served enough of them. Nothing of a file is ever executed in it.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from openmint.adapters.facts import AdapterFacts, AdapterLimits
from openmint.bases import BaseFacts
from openmint.errors import BadAdapter, OpenmintError

MAX_MEMORY_BYTES = 1 << 30
"""Address space. Python with numpy takes 0.4 GB of it; a folder is read in chunks of 4 MB."""

MAX_CPU_S = 60
"""Of one inspection. A 500 MB adapter takes 3 s."""

TIMEOUT_S = 120.0
"""Of one inspection, once its turn has come: a machine so busy that MAX_CPU_S takes twice as long."""

MAX_INSPECTIONS = 500
"""Of one child: what little memory each leaves behind must not add up."""

MAX_ANSWER_BYTES = 32 << 20  # 50,000 tensors of 250 bytes each, and their digests

_DEFAULT_LIMITS = AdapterLimits()


class InspectionFailed(OpenmintError):
    """The child that inspects adapters broke; this says nothing about the adapter."""

    code = "inspection_failed"
    retryable = True


class Inspector:
    """Inspects adapter folders one after another in a child of its own. Close it, or use it as a context manager."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._turn = asyncio.Lock()
        self._child: asyncio.subprocess.Process | None = None
        self._served = 0

    async def __aenter__(self) -> "Inspector":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def inspect(
        self, path: Path, base: BaseFacts, limits: AdapterLimits = _DEFAULT_LIMITS, *, needs_manifest: bool = False
    ) -> AdapterFacts:
        """What `checks.check_adapter_folder` answers, from the child.

        Raises: BadAdapter naming the culprit, also when the child ran into its CPU or memory limit; InspectionFailed.
        """
        request = {
            "folder": str(path),
            "base": asdict(base),
            "limits": asdict(limits),
            "needs_manifest": needs_manifest,
            "max_cpu_s": MAX_CPU_S,
        }
        async with self._turn:
            child = await self._running_child()
            try:
                async with asyncio.timeout(self._timeout_s):
                    answer = await self._ask(child, json.dumps(request).encode() + b"\n")
            except BaseException as error:
                # It may still be at work on this one: its next answer would be taken for another's.
                await self._end_child()
                if isinstance(error, TimeoutError):
                    raise InspectionFailed(f"an inspection took longer than {self._timeout_s:g} s") from error
                raise
            if self._served >= MAX_INSPECTIONS:
                await self._end_child()
        refused = answer.get("refused")
        if refused is not None:
            raise BadAdapter(str(refused["detail"]), field=refused["field"])
        return AdapterFacts.from_json(answer["facts"])

    async def close(self) -> None:
        """End the child."""
        async with self._turn:
            await self._end_child()

    async def _ask(self, child: asyncio.subprocess.Process, request: bytes) -> dict[str, Any]:
        assert child.stdin is not None and child.stdout is not None and child.stderr is not None
        self._served += 1
        with contextlib.suppress(ConnectionError):  # it ended: what it said last and its status are read below
            child.stdin.write(request)
            await child.stdin.drain()
        try:
            line = await child.stdout.readline()
        except ValueError as error:
            raise InspectionFailed(f"the inspecting child answered with more than {MAX_ANSWER_BYTES} bytes") from error
        if line.endswith(b"\n"):
            return json.loads(line)
        last_words = (await child.stderr.read())[-300:].decode("utf-8", "replace").strip()
        if await child.wait() == -signal.SIGXCPU:
            raise BadAdapter(f"the adapter needs more than {MAX_CPU_S} s to be inspected")
        raise InspectionFailed(f"the inspecting child ended with {child.returncode}: {last_words}")

    async def _running_child(self) -> asyncio.subprocess.Process:
        if self._child is None or self._child.returncode is not None:
            self._served = 0
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "openmint.adapters.inspection_child",
                str(MAX_MEMORY_BYTES),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=_environment(),
                limit=MAX_ANSWER_BYTES,
            )
        return self._child

    async def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        # Reads the pipes to their end too, so that their transports are closed when we return.
        await child.communicate()


async def inspect_in_child(
    path: Path,
    base: BaseFacts,
    limits: AdapterLimits = _DEFAULT_LIMITS,
    *,
    needs_manifest: bool = False,
    timeout_s: float = TIMEOUT_S,
) -> AdapterFacts:
    """One inspection in a child of its own. Raises: as `Inspector.inspect`."""
    async with Inspector(timeout_s=timeout_s) as inspector:
        return await inspector.inspect(path, base, limits, needs_manifest=needs_manifest)


def _environment() -> dict[str, str]:
    """Enough to start Python, and none of our secrets."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
    # Each OpenBLAS thread takes address space, and nothing here multiplies matrices.
    return {**kept, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
