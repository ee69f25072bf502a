"""A foreign PEFT folder on its way in: copied file by file through one directory descriptor, never linked."""

import os
from pathlib import Path

from openmint.adapters.facts import CONFIG_FILE, DTYPE_BYTES, WEIGHTS_FILE, AdapterLimits
from openmint.adapters.folder import AdapterFolder
from openmint.bases import BaseFacts

LEFT_BEHIND = frozenset({"README.md", ".gitattributes"})
"""Written by PEFT and hubs beside an adapter; never opened."""

CHUNK_BYTES = 4 << 20


def copy_foreign_folder(source: Path, target: Path, base: BaseFacts, limits: AdapterLimits) -> None:
    """Copy configuration and weights; anything else in the folder is refused. Raises: BadAdapter naming the file."""
    rows = sum(out_size + in_size for out_size, in_size in base.modules.values())
    rows += sum(count * (out_size + in_size) for count, out_size, in_size in base.experts.values())
    elements = rows * limits.max_rank
    max_bytes = {
        CONFIG_FILE: limits.max_config_bytes,
        WEIGHTS_FILE: 8 + limits.max_header_bytes + elements * max(DTYPE_BYTES.values()),
    }
    with AdapterFolder(source, {*max_bytes, *LEFT_BEHIND}) as folder:
        for name, limit in max_bytes.items():
            with folder.open(name, limit) as descriptor, (target / name).open("xb") as out:
                position = 0
                # Bounded by the size at the time of opening: the source may grow meanwhile.
                size = os.fstat(descriptor).st_size
                while position < size and (chunk := os.pread(descriptor, min(CHUNK_BYTES, size - position), position)):
                    out.write(chunk)
                    position += len(chunk)
