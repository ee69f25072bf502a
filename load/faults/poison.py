"""An adapter of NaN behind every check: its prepared copies are overwritten on each engine's machine after staging."""

from pathlib import Path

import numpy as np

from load.stack.openmint_stack import OpenmintStack
from openmint.engines.protocol import CommandStamp
from openmint_engine_host.layout import FILE_NAME, read_header


async def poison(stack: OpenmintStack, digest: str) -> int:
    """Stage the revision on every engine and fill what was prepared with NaN; how many copies."""
    leader = await stack.snapshot()
    stamp = CommandStamp(int(leader["epoch"]) if leader else 0, 0)
    for name in stack.engine_names:
        engine = stack.host(name)
        try:
            await engine.stage(stamp, digest)
        finally:
            await engine.close()
    copies = list(stack.state_dir.glob(f"spool/*/prepared/{digest.removeprefix('sha256:')}-*"))
    for folder in copies:
        fill_with_nan(folder / FILE_NAME)
    return len(copies)


def fill_with_nan(file: Path) -> None:
    """Overwrite a prepared adapter's weights; its header stays."""
    header = read_header(file)
    with file.open("r+b") as opened:
        opened.seek(header.blob_offset)
        opened.write(np.full(header.blob_bytes // 4, np.nan, dtype=np.float32).tobytes())
