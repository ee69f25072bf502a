"""A real engine, by way of the control port of its host (`services/openmint_engine_host/control.py`)."""

from dataclasses import asdict
from typing import Any, NoReturn, cast
from uuid import UUID

import httpx

from openmint import errors
from openmint.engines.protocol import (
    AttachRequest,
    AttachResult,
    CommandStamp,
    EngineState,
    Examination,
    Resident,
    StageResult,
)
from openmint.errors import EngineFailed, OpenmintError
from openmint.tracing import trace_headers

QUICK_TIMEOUT_S = 30.0
EXAMINE_TIMEOUT_S = 60.0
"""Waiting for an idle engine, and some six probes of one token."""

STAGE_TIMEOUT_S = 300.0
"""A large adapter from a slow store; the scheduler gives up on its own deadline before that."""

_BY_CODE: dict[str, type[OpenmintError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, OpenmintError) and kind is not OpenmintError
}


class HostEngine:
    """An `Engine` over HTTP."""

    def __init__(self, control_url: str, control_key: str, client: httpx.AsyncClient | None = None) -> None:
        self.control_url = control_url
        self._owns_client = client is None
        self._http = client or httpx.AsyncClient(trust_env=False)
        self._headers = {"authorization": f"Bearer {control_key}"}

    async def state(self) -> EngineState:
        """What the engine holds now."""
        return state_from_json(await self._call("GET", "state"))

    async def stage(self, stamp: CommandStamp, digest: str) -> StageResult:
        """Fetch, verify and repack a revision outside the engine process."""
        return StageResult(**await self._call("POST", "stage", {**asdict(stamp), "digest": digest}, STAGE_TIMEOUT_S))

    async def attach(self, stamp: CommandStamp, requests: list[AttachRequest]) -> list[AttachResult]:
        """Make staged revisions resident."""
        body = {**asdict(stamp), "requests": [asdict(request) for request in requests]}
        return [AttachResult(**result) for result in (await self._call("POST", "attach", body))["results"]]

    async def remove(self, stamp: CommandStamp, adapter_name: str, timeout_s: float) -> bool:
        """Drain an adapter and free it."""
        body = {**asdict(stamp), "adapter_name": adapter_name, "timeout_s": timeout_s}
        return bool((await self._call("POST", "remove", body, timeout_s + QUICK_TIMEOUT_S))["removed"])

    async def unstage(self, stamp: CommandStamp, digest: str) -> None:
        """Drop the staged copy of a revision that is not resident."""
        await self._call("POST", "unstage", {**asdict(stamp), "digest": digest})

    async def restart(self, stamp: CommandStamp, reason: str) -> None:
        """Let the engine start afresh."""
        await self._call("POST", "restart", {**asdict(stamp), "reason": reason})

    async def examine(self, stamp: CommandStamp, request: AttachRequest) -> Examination:
        """Probe a staged revision alone."""
        return Examination(
            **await self._call("POST", "examine", {**asdict(stamp), **asdict(request)}, EXAMINE_TIMEOUT_S)
        )

    async def probe(self, adapter_name: str) -> float:
        """Logprob in nats of one token by a resident, or by the base where the name is empty.

        Raises: NotFound when it is not resident, EngineFailed when the answer is not a number.
        """
        return float((await self._call("POST", "probe", {"adapter_name": adapter_name}))["logprob"])

    async def close(self) -> None:
        """Let go of connections."""
        if self._owns_client:
            await self._http.aclose()

    async def _call(
        self, method: str, name: str, body: dict[str, Any] | None = None, timeout_s: float = QUICK_TIMEOUT_S
    ) -> dict[str, Any]:
        try:
            answer = await self._http.request(
                method,
                f"{self.control_url}/control/{name}",
                json=body,
                headers={**self._headers, **trace_headers()},
                timeout=timeout_s,
            )
            content = cast(dict[str, Any], answer.json())
        except (httpx.HTTPError, ValueError) as error:
            raise EngineFailed(f"{self.control_url} does not answer {name}: {type(error).__name__} {error}") from error
        if answer.status_code != 200:
            _raise(name, content)
        return content


def _raise(name: str, content: dict[str, Any]) -> NoReturn:
    """The error that the host named, as an exception of its class."""
    kind = _BY_CODE.get(str(content.get("code")), EngineFailed)
    raise kind(str(content.get("detail") or name), retry_after_s=content.get("retry_after_s"))


def state_from_json(body: dict[str, Any]) -> EngineState:
    """Read what `GET /control/state` answers."""
    fields: dict[str, Any] = {
        **body,
        "boot_id": UUID(body["boot_id"]),
        "pools": tuple(body["pools"]),
        "capabilities": frozenset(body["capabilities"]),
        "residents": tuple(Resident(**resident) for resident in body["residents"]),
        "staged": tuple(body["staged"]),
        "slot_adapters": tuple(body["slot_adapters"]),
    }
    return EngineState(**fields)
