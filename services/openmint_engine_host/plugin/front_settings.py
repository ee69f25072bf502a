"""What the engine host tells the plug-in's front: one JSON file that only its user can read.

Keys are in a file because an argument list and an environment are easier to read for others on the machine.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

FILE_VARIABLE = "OPENMINT_ENGINE_FILE"


@dataclass(frozen=True, slots=True)
class FrontSettings:
    """Settings of one boot."""

    boot_id: str
    base: str
    inference_key: str
    """In `Authorization: Bearer` of every OpenAI request."""

    host_key: str
    """The same for `/openmint/*`; made anew for each boot, known to the host alone."""

    max_running: int
    """Sequences that vLLM runs at once."""

    margin: int = 2
    """Sequences admitted beyond that, so that a finished one is replaced without a round trip."""

    tenant_share: float = 0.75
    """The part of all that one tenant may take."""

    max_body_bytes: int = 8 << 20

    def write(self, path: Path) -> None:
        """Write the file, readable by its owner only."""
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(self), file)

    @classmethod
    def read(cls) -> "FrontSettings":
        """Read the file that the environment names."""
        return cls(**json.loads(Path(os.environ[FILE_VARIABLE]).read_text()))
