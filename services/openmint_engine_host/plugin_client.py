"""The engine host's calls to the plug-in inside its vLLM."""

from typing import Any, cast

import httpx

from openmint.errors import EngineFailed

QUICK_TIMEOUT_S = 10.0
SLOW_TIMEOUT_S = 120.0
"""A command waits for the running step; a long prefill on a busy CPU takes tens of seconds."""


class AnswerNotFinite(EngineFailed):
    """The model's answer is not made of numbers."""


class PluginClient:
    """One boot's `/openmint/*`. Every call raises EngineFailed when the engine is gone or refuses."""

    def __init__(self, url: str, host_key: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=url, headers={"authorization": f"Bearer {host_key}"}, timeout=SLOW_TIMEOUT_S, trust_env=False
        )

    async def health(self) -> bool:
        """Does the server answer, and does vLLM believe in itself?"""
        try:
            return (await self._http.get("/health", timeout=QUICK_TIMEOUT_S)).status_code == 200
        except httpx.HTTPError:
            return False

    async def pulse(self) -> dict[str, Any]:
        """What the front knows by itself."""
        return await self._call("GET", "pulse", timeout_s=QUICK_TIMEOUT_S)

    async def state(self, timeout_s: float = SLOW_TIMEOUT_S) -> dict[str, Any]:
        """What the worker holds."""
        return await self._call("GET", "state", timeout_s=timeout_s)

    async def start(self) -> dict[str, Any]:
        """Self-test; then the engine admits requests."""
        return await self._call("POST", "start")

    async def attach(self, adapters: list[dict[str, Any]]) -> dict[str, Any]:
        """Attach prepared files: one result each, and a pulse."""
        return await self._call("POST", "attach", {"adapters": adapters})

    async def remove(self, name: str, timeout_s: float) -> dict[str, Any]:
        """Drain and remove an adapter: `removed`, its digest, and a pulse."""
        body = {"name": name, "timeout_s": timeout_s}
        return await self._call("POST", "remove", body, timeout_s=timeout_s + SLOW_TIMEOUT_S)

    async def probe(self, name: str) -> float:
        """Logprob of one token by an adapter; the base where `name` is empty. Raises: AnswerNotFinite."""
        return float((await self._call("POST", "probe", {"name": name}))["logprob"])

    async def cleanse(self) -> None:
        """Zero the key-value cache; nothing may be in flight."""
        await self._call("POST", "cleanse")

    async def close_admission(self, reason: str, *, is_examining: bool = False) -> None:
        """Admit nothing more; while examining, bad answers are expected and make nobody suspect."""
        await self._call("POST", "close", {"reason": reason, "is_examining": is_examining})

    async def open_admission(self) -> None:
        """Admit again."""
        await self._call("POST", "open")

    async def close(self) -> None:
        """Let go of connections."""
        await self._http.aclose()

    async def _call(
        self, method: str, name: str, body: dict[str, Any] | None = None, timeout_s: float = SLOW_TIMEOUT_S
    ) -> dict[str, Any]:
        try:
            answer = await self._http.request(method, f"/openmint/{name}", json=body or {}, timeout=timeout_s)
        except httpx.HTTPError as error:
            raise EngineFailed(f"the engine does not answer {name}: {type(error).__name__} {error}") from error
        if answer.status_code != 200:
            code, message = _error(answer)
            kind = AnswerNotFinite if code == "not_finite" else EngineFailed
            raise kind(f"the engine answers {name} with {answer.status_code}: {message}")
        return cast(dict[str, Any], answer.json())


def _error(answer: httpx.Response) -> tuple[str, str]:
    """Code and message of a refusal."""
    try:
        error = answer.json()["error"]
        return str(error["code"]), str(error["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return "", answer.text[:500]
