"""Which gateway, with which key: from OPENMINT_URL and OPENMINT_KEY, or from `<state_dir>/client.json`."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from openmint.errors import OpenmintError

DEFAULT_URL = "http://127.0.0.1:8080"


class NoProfile(OpenmintError):
    """There is no API key: set OPENMINT_KEY, or start a local stack with: openmint up."""

    code = "no_profile"


@dataclass(frozen=True, slots=True)
class Profile:
    """Whom the command line speaks as."""

    url: str
    key: str
    tenant: str = ""


def state_dir() -> Path:
    """Where a local stack keeps everything."""
    return Path(os.environ.get("OPENMINT_STATE_DIR", ".openmint"))


def stack_traces_dir(state_dir: Path) -> Path:
    """Where a local stack that traces keeps its traces."""
    return state_dir / "traces"


def profile_file() -> Path:
    """Readable by its owner alone."""
    return state_dir() / "client.json"


def read_profile() -> Profile:
    """Raises: NoProfile."""
    saved: dict[str, str] = {}
    if profile_file().exists():
        saved = json.loads(profile_file().read_text())
    url = os.environ.get("OPENMINT_URL") or saved.get("url") or DEFAULT_URL
    key = os.environ.get("OPENMINT_KEY") or saved.get("key") or ""
    if not key:
        raise NoProfile
    return Profile(url, key, saved.get("tenant", ""))


def save_profile(profile: Profile) -> Path:
    """Keep it for later commands."""
    path = profile_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(profile), file, indent=1)
    return path
