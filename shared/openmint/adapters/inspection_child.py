"""The child that inspects adapter folders: one JSON request a line in, one JSON answer a line out.

Started as `python -m openmint.adapters.inspection_child <bytes of memory>`. Limits come first, before anything of a
folder is read and before numpy is imported.
"""

import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

NO_MEMORY = "the adapter needs more memory to be inspected than is allowed"


def main() -> int:
    """Answer until standard input ends."""
    _set_limits(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent, which ends us when it is done
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        _allow_cpu(request["max_cpu_s"])
        sys.stdout.write(json.dumps(_answer(request)) + "\n")
        sys.stdout.flush()
    return 0


def _answer(request: dict[str, Any]) -> dict[str, Any]:
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
    except BadAdapter as error:
        return {"refused": {"detail": error.detail, "field": error.field}}
    except MemoryError:
        return {"refused": {"detail": NO_MEMORY, "field": None}}
    return {"facts": facts.as_json()}


def _set_limits(max_memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (max_memory_bytes, max_memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it has nothing to write to a file
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def _allow_cpu(seconds: int) -> None:
    """Seconds from now: the limit itself counts from the start of the process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime) + seconds + 1, hard))


if __name__ == "__main__":
    sys.exit(main())
