"""The resident list of one engine, as its host answers it to readers (`GET <control_url>/control/residents`)."""

from typing import Protocol
from uuid import UUID

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from openmint.engines.protocol import Resident
from openmint.errors import EngineFailed

LIST_TIMEOUT_S = 3.0
"""The host answers from memory; a slower answer would be older than the next heartbeat."""

MAX_LIST_BYTES = 16 * 1024 * 1024


class ResidentList(BaseModel):
    """Who is resident on an engine, in one boot of it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    engine: str
    base: str
    boot_id: UUID
    pools: list[str]
    url: str
    list_version: int
    residents: list[Resident]


class ResidentListSource(Protocol):
    """Where a view gets lists from."""

    async def fetch(self, control_url: str) -> ResidentList:
        """The engine's list. Raises: EngineFailed."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class HostLists:
    """Lists over HTTP, with the read key."""

    def __init__(self, read_key: str) -> None:
        self._http = httpx.AsyncClient(
            headers={"authorization": f"Bearer {read_key}"}, timeout=LIST_TIMEOUT_S, trust_env=False
        )

    async def fetch(self, control_url: str) -> ResidentList:
        """The engine's list. Raises: EngineFailed."""
        try:
            response = await self._http.get(f"{control_url.rstrip('/')}/control/residents")
            if response.status_code != 200 or len(response.content) > MAX_LIST_BYTES:
                raise EngineFailed(f"{control_url} answered {response.status_code} to a reader of its residents")
            return ResidentList.model_validate_json(response.content)
        except (httpx.HTTPError, ValidationError) as error:
            raise EngineFailed(f"{control_url} gave no list of its residents: {error!r}") from error

    async def close(self) -> None:
        """Let go of connections."""
        await self._http.aclose()
