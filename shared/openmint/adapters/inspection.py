"""The checks of an adapter, run in a child process with limits, so that no file can hurt the process that asks.

Use this for every folder that was not written and signed by an exporter of ours.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openmint.adapters.facts import AdapterFacts, AdapterLimits
from openmint.bases import BaseFacts
from openmint.errors import BadAdapter, OpenmintError

MAX_MEMORY_BYTES = 1 << 30
"""Address space. Python with numpy takes 0.4 GB of it; a folder is read in chunks of 4 MB."""

MAX_CPU_S = 60
"""A 500 MB adapter takes 3 s."""

TIMEOUT_S = 120.0
MAX_ANSWER_BYTES = 32 << 20

_DEFAULT_LIMITS = AdapterLimits()


class InspectionFailed(OpenmintError):
    """The child that inspects adapters broke; this says nothing about the adapter."""

    code = "inspection_failed"
    retryable = True


async def inspect_in_child(
    path: Path,
    base: BaseFacts,
    limits: AdapterLimits = _DEFAULT_LIMITS,
    *,
    needs_manifest: bool = False,
    timeout_s: float = TIMEOUT_S,
) -> AdapterFacts:
    """What `checks.check_adapter_folder` answers, from a child that may use neither much memory nor much time.

    Raises: BadAdapter naming the culprit, also when the child ran into its CPU or memory limit; InspectionFailed.
    """
    request = {
        "folder": str(path),
        "base": asdict(base),
        "limits": asdict(limits),
        "needs_manifest": needs_manifest,
        "max_memory_bytes": MAX_MEMORY_BYTES,
        "max_cpu_s": MAX_CPU_S,
    }
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "openmint.adapters.inspection_child",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_environment(),
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await child.communicate(json.dumps(request).encode())
    except TimeoutError as error:
        raise InspectionFailed(f"the inspection of an adapter took longer than {timeout_s:g} s") from error
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if child.returncode == -signal.SIGXCPU:
        raise BadAdapter(f"the adapter needs more than {MAX_CPU_S} s to be inspected")
    return _read_answer(child.returncode, out, err)


def _read_answer(returncode: int | None, out: bytes, err: bytes) -> AdapterFacts:
    if returncode != 0 or len(out) > MAX_ANSWER_BYTES:
        tail = err.decode("utf-8", "replace")[-300:].strip()
        raise InspectionFailed(f"the inspecting child ended with {returncode}: {tail}")
    answer: dict[str, Any] = json.loads(out)
    refused = answer.get("refused")
    if refused is not None:
        raise BadAdapter(str(refused["detail"]), field=refused["field"])
    return AdapterFacts.from_json(answer["facts"])


def _environment() -> dict[str, str]:
    """Enough to start Python, and none of our secrets."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
    # Each OpenBLAS thread takes address space, and nothing here multiplies matrices.
    return {**kept, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
