"""`endpoints.json`: how the embedded servers of one state directory are reached."""

import json
import threading
from pathlib import Path

from openmint.embedded.process import write_private
from openmint.settings import Part, endpoints_file

_writing = threading.Lock()


def publish_endpoint(state_dir: Path, part: Part, values: dict[str, str]) -> None:
    """Write how `part` is reached, keeping what the file says of the other."""
    path = endpoints_file(state_dir)
    with _writing:
        try:
            known = json.loads(path.read_text())
        except (OSError, ValueError):
            known = {}
        write_private(path, json.dumps(known | {part: values}, indent=1))
