"""The exporter's settings, prefix OPENMINT_."""

from pathlib import Path
from typing import Literal

from openmint.settings import CommonSettings

DtypeName = Literal["bfloat16", "float16", "float32"]


class ExporterSettings(CommonSettings):
    """Read once, in app.py."""

    exporter_dtype: DtypeName = "bfloat16"
    """What weights are rounded to, to nearest even. bfloat16 is what engines serve in; float32 doubles the file."""

    exporter_concurrency: int = 2
    """Exports at once in this process. One takes a core for a fraction of a second, then waits for the store."""

    exporter_lease_s: float = 30.0
    """How long a revision stays ours without a heartbeat; a crash costs this much before another takes over."""

    exporter_poll_s: float = 3.0
    """How often due exports are looked for when nothing on the bus says that there are any."""

    exporter_drain_s: float = 10.0
    """On SIGTERM: how long the exports under way may take, below the 20 s after which a supervisor kills."""

    exporter_key_folder: Path | None = None
    """Where the signing key lies, and the public halves that verifiers trust; empty: <state_dir>/keys."""
