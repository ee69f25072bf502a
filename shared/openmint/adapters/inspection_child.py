"""The child that inspects an adapter folder: `python -m openmint.adapters.inspection_child`, JSON in and out.

Limits come first, before anything of the folder is read and before numpy is imported.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    """Read a request from standard input, write facts or a refusal to standard output."""
    request: dict[str, Any] = json.load(sys.stdin)
    _set_limits(request["max_memory_bytes"], request["max_cpu_s"])
    from openmint.adapters.checks import check_adapter_folder
    from openmint.adapters.facts import AdapterLimits
    from openmint.bases import BaseFacts
    from openmint.errors import BadAdapter

    limits = dict(request["limits"])
    limits["accepted_base_names"] = tuple(limits["accepted_base_names"])
    try:
        facts = check_adapter_folder(
            Path(request["folder"]),
            BaseFacts.from_json(request["base"]),
            AdapterLimits(**limits),
            needs_manifest=request["needs_manifest"],
        )
        answer: dict[str, Any] = {"facts": facts.as_json()}
    except BadAdapter as error:
        answer = {"refused": {"detail": error.detail, "field": error.field}}
    except MemoryError:
        answer = {"refused": {"detail": "the adapter needs more memory to be inspected than is allowed", "field": None}}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    return 0


def _set_limits(max_memory_bytes: int, max_cpu_s: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (max_memory_bytes, max_memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (max_cpu_s, max_cpu_s))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it has nothing to write to a file
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


if __name__ == "__main__":
    sys.exit(main())
