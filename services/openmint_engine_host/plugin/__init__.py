"""The vLLM plug-in: what stock vLLM lacks to be an openmint engine, without a fork.

Three seams of vLLM carry it: the general plug-in (`register`, run in every vLLM process before the model is built),
the worker extension (`worker.WorkerExtension`, next to the adapters), and the ASGI middleware
(`front.EngineFront`, in front of the OpenAI routes). What depends on a vLLM version is in `versions/` alone.
"""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


ONLY_REPAIR = "OPENMINT_PLUGIN_ONLY_REPAIR"
"""Set to 1, any vLLM on CPU gets the repaired LoRA kernels and is stock in all else: for honest comparisons."""


def register() -> None:
    """Entry point of `vllm.general_plugins`. Does nothing in a vLLM that no engine host started, unless asked to.

    Raises: UnknownVllm, which stops that vLLM process.
    """
    is_engine = os.environ.get("OPENMINT_ENGINE") == "1"
    if not is_engine and os.environ.get(ONLY_REPAIR) != "1":
        return
    from openmint_engine_host.plugin.versions import open_version

    if is_engine:
        die_with_parent()
        open_version().install()
    else:
        open_version().repair_kernels()


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent goes, so that a killed host leaves no engine behind."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
