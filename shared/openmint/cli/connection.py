"""How commands reach the gateway, and, for an operator's commands, the parts behind it."""

from pathlib import Path

from pydantic import SecretStr

from openmint.cli.profile import read_profile, stack_traces_dir
from openmint.client import Client
from openmint.errors import BadRequest
from openmint.settings import CommonSettings


def connect() -> Client:
    """A client with the profile's key. Raises: NoProfile."""
    profile = read_profile()
    return Client(profile.url, profile.key)


def operator_settings() -> CommonSettings:
    """Where bus, catalogue and store are. Raises: NotConfigured."""
    return CommonSettings().resolve()


def bus_settings() -> CommonSettings | None:
    """Where the bus is, for somebody who may use it; None when that is not known here."""
    try:
        return CommonSettings().resolve(("nats",))
    except BadRequest:
        return None


def traces_dir() -> Path:
    """Where traces are kept: the setting, or the folder of the local stack."""
    settings = CommonSettings()
    return settings.traces_dir or stack_traces_dir(settings.state_dir)


class OperatorSettings(CommonSettings):
    """What an operator's commands need beside the addresses."""

    key_pepper: SecretStr = SecretStr("")


def pepper() -> bytes:
    """What key hashes are mixed with: the setting (or secret file), or the local stack's own secret."""
    from openmint.local_stack.plan import secret_file

    settings = OperatorSettings()
    return (settings.key_pepper.get_secret_value() or secret_file(settings.state_dir, "pepper.key")).encode()
