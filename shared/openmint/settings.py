"""Settings that every service has, read from OPENMINT_* once, in the service's `app.py`.

Empty addresses mean the embedded servers: `resolve()` takes theirs from `endpoints.json` in the state directory.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Literal, Self

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from openmint.errors import BadRequest

Part = Literal["nats", "postgres"]

BOTH_PARTS: tuple[Part, ...] = ("nats", "postgres")


def endpoints_file(state_dir: Path) -> Path:
    """Where the embedded servers write how they are reached; only its owner may read it, for passwords are in it."""
    return state_dir / "endpoints.json"


class CommonSettings(BaseSettings):
    """Where the shared parts are, and how to log. A service adds its own fields in a subclass."""

    model_config = SettingsConfigDict(
        env_prefix="OPENMINT_",
        extra="ignore",
        # A container's secrets are files named like the settings: /run/secrets/openmint_nats_password.
        secrets_dir="/run/secrets" if Path("/run/secrets").is_dir() else None,
    )

    state_dir: Path = Path(".openmint")
    nats_url: str = Field(default="", description="nats://host:port; empty: the embedded server")
    nats_user: str = ""
    nats_password: str = Field(default="", repr=False)
    postgres_dsn: str = Field(default="", repr=False, description="postgresql://…; empty: the embedded server")
    store_url: str = Field(default="", description="s3://, gs://, az:// or file://; empty: a folder in state_dir")
    log_format: Literal["json", "console"] = "json"
    traces_dir: Path | None = Field(default=None, description="Traces go into files there too; unset: no files")
    log_level: Literal["debug", "info", "warning", "error", "critical"] = "info"

    def resolve(self, needs: Collection[Part] = BOTH_PARTS) -> Self:
        """A copy in which every address that this process needs is filled in.

        Raises: BadRequest, naming the setting, when an address is neither set nor known from an embedded server.
        """
        known = _read_endpoints(endpoints_file(self.state_dir))
        filled: dict[str, str] = {}
        nats, postgres = known.get("nats", {}), known.get("postgres", {})
        if not self.nats_url and nats:
            filled |= {"nats_url": nats["url"], "nats_user": nats["user"], "nats_password": nats["password"]}
        if not self.postgres_dsn and postgres:
            filled["postgres_dsn"] = postgres["dsn"]
        if not self.store_url:
            filled["store_url"] = (self.state_dir / "store").resolve().as_uri()
        resolved = self.model_copy(update=filled)
        for part, field in (("nats", "nats_url"), ("postgres", "postgres_dsn")):
            if part in needs and not getattr(resolved, field):
                raise BadRequest(
                    f"no address of {part}: set OPENMINT_{field.upper()}, or start the embedded servers "
                    f"(`openmint up`), which write {endpoints_file(self.state_dir)}",
                    field=field,
                )
        return resolved


def _read_endpoints(path: Path) -> dict[str, dict[str, str]]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadRequest(f"can't read {path}: {error}", field="state_dir") from error
