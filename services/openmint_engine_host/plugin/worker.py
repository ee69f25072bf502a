"""The part of the plug-in that lives in vLLM's worker, next to the adapters.

vLLM mixes this class into its own worker (`--worker-extension-cls`). Methods run between two steps, take and give
plain values, and are named with a prefix so that they can't hide one of vLLM's.
"""

import resource
import time
from dataclasses import asdict
from typing import Any

from openmint_engine_host.plugin.versions import open_version
from openmint_engine_host.plugin.versions.contract import Load


class WorkerExtension:
    """Commands of the front to the worker."""

    def openmint_module_table(self) -> dict[str, Any]:
        """The modules that take LoRA, as plain values."""
        return open_version().module_table(self).as_json()

    def openmint_self_test(self) -> str:
        """Empty, or what the LoRA kernels do wrong."""
        return open_version().self_test(self)

    def openmint_attach(self, loads: list[list[Any]]) -> list[dict[str, Any]]:
        """Make prepared files resident, all in this gap between steps. One {attach_ms, error} per load."""
        version = open_version()
        results: list[dict[str, Any]] = []
        for name, adapter_id, path in loads:
            began = time.perf_counter()
            error = ""
            try:
                version.attach(self, Load(name, adapter_id, path))
            except Exception as cause:  # whatever it is, it is this adapter's, and the engine goes on
                error = f"{type(cause).__name__}: {cause}"
            results.append({"attach_ms": (time.perf_counter() - began) * 1e3, "error": error})
        return results

    def openmint_remove(self, adapter_id: int) -> dict[str, Any]:
        """Free an adapter and say what is left."""
        removed = open_version().remove(self, adapter_id)
        return {"removed": removed, "residency": self.openmint_residency()}

    def openmint_zero_cache(self) -> None:
        """Forget the keys and values of all former requests."""
        open_version().zero_cache(self)

    def openmint_residency(self) -> dict[str, Any]:
        """What is in host memory and in the slots, and this process's memory."""
        return {
            **asdict(open_version().residency(self)),
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
