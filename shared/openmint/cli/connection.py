"""How commands reach the gateway, and, for an operator's commands, the parts behind it."""

import os

from openmint.cli.profile import read_profile
from openmint.client import Client
from openmint.settings import CommonSettings


def connect() -> Client:
    """A client with the profile's key. Raises: NoProfile."""
    profile = read_profile()
    return Client(profile.url, profile.key)


def operator_settings() -> CommonSettings:
    """Where bus, catalogue and store are. Raises: NotConfigured."""
    return CommonSettings().resolve()


def pepper(settings: CommonSettings) -> bytes:
    """What key hashes are mixed with: the setting, or the local stack's own secret."""
    from openmint.local_stack.plan import secret_file

    given = os.environ.get("OPENMINT_KEY_PEPPER", "")
    return (given or secret_file(settings.state_dir, "pepper.key")).encode()
