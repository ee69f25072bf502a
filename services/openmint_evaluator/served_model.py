"""A revision or a base as an engine serves it, asked by OpenAI completions requests on token ids.

The engine names in every answer which revision and which boot gave it; an answer of anybody else is an error here,
never a score.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
from pydantic import JsonValue

from openmint.engines.protocol import BOOT_HEADER, REVISION_HEADER, TENANT_HEADER, VERDICT_HEADER
from openmint.errors import EngineFailed, Overloaded

BASE_REVISION = "base"
"""What an engine writes into REVISION_HEADER when the base itself answered."""

BUSY_RETRY_S = 0.2
BUSY_PATIENCE_S = 60.0
"""An engine that is full says so at once; scoring is not urgent, so ask again for this long."""

NON_FINITE_TEXT = "out of range float values"
"""vLLM answers 400 with these words when a logprob can't be written as JSON."""


class WrongAnswerer(EngineFailed):
    """Another revision than the one asked for answered."""

    code = "wrong_answerer"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model name on one engine. `revision` is the digest that must answer, or BASE_REVISION.

    Every call raises EngineFailed when the engine breaks, WrongAnswerer when another revision answered, Overloaded
    when the engine stays full.
    """

    http: httpx.AsyncClient
    url: str
    model: str
    revision: str
    boot_id: str
    tenant: str

    async def prompt_logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Logprobs of every token but the first; NaN where the engine has no finite number."""
        body = await self._complete({"prompt": list(token_ids), "max_tokens": 1, "prompt_logprobs": 0})
        if body is None:
            return [math.nan] * (len(token_ids) - 1)
        entries = _first_choice(body).get("prompt_logprobs")
        if not isinstance(entries, list) or len(entries) != len(token_ids):
            raise EngineFailed(f"engine at {self.url} gave no logprobs for {self.model}'s prompt")
        return [_logprob_of(entry, token) for entry, token in zip(entries[1:], token_ids[1:], strict=True)]

    async def choose_token(self, prompt_ids: Sequence[int], allowed: Sequence[int]) -> int:
        """The likeliest next token among the allowed ones."""
        request: dict[str, JsonValue] = {
            "prompt": list(prompt_ids),
            "max_tokens": 1,
            "allowed_token_ids": list(allowed),
            "logprobs": 1,
            "return_token_ids": True,
        }
        body = await self._complete(request)
        if body is None:
            raise EngineFailed(f"engine at {self.url} answered {self.model} with numbers that are not finite")
        chosen = _first_choice(body).get("token_ids")
        if not isinstance(chosen, list) or not chosen or chosen[0] not in allowed:
            raise EngineFailed(f"engine at {self.url} did not keep to the allowed tokens for {self.model}")
        return int(str(chosen[0]))

    async def _complete(self, request: dict[str, JsonValue]) -> dict[str, JsonValue] | None:
        """The answer's body; None when the engine says that its numbers are not finite."""
        deadline = asyncio.get_running_loop().time() + BUSY_PATIENCE_S
        while True:
            response = await self._post({"model": self.model, "temperature": 0, **request})
            if response.status_code == 503 and response.headers.get(VERDICT_HEADER) == "busy":
                if asyncio.get_running_loop().time() > deadline:
                    raise Overloaded(f"engine at {self.url} stayed full for {BUSY_PATIENCE_S:.0f} s")
                await asyncio.sleep(BUSY_RETRY_S)
                continue
            if response.status_code != 200:
                if NON_FINITE_TEXT in response.text.lower():
                    return None
                raise EngineFailed(f"engine at {self.url} answered {response.status_code}: {response.text[:300]}")
            self._check_answerer(response)
            try:
                return response.json()
            except ValueError as error:
                raise EngineFailed(f"engine at {self.url} did not answer in JSON") from error

    async def _post(self, request: dict[str, JsonValue]) -> httpx.Response:
        try:
            return await self.http.post(
                f"{self.url}/v1/completions", json=request, headers={TENANT_HEADER: self.tenant}
            )
        except httpx.HTTPError as error:
            raise EngineFailed(f"engine at {self.url} broke while answering: {error!r}") from error

    def _check_answerer(self, response: httpx.Response) -> None:
        answered_by = response.headers.get(REVISION_HEADER, "nobody")
        if answered_by != self.revision:
            raise WrongAnswerer(f"{answered_by} answered in place of {self.revision} on the engine at {self.url}")
        boot_id = response.headers.get(BOOT_HEADER)
        if self.boot_id and boot_id != self.boot_id:
            raise EngineFailed(f"the engine at {self.url} was started anew while answering")


def _first_choice(body: dict[str, JsonValue]) -> dict[str, JsonValue]:
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise EngineFailed("the engine's answer has no choices")
    return choice


def _logprob_of(entry: JsonValue, token: int) -> float:
    """The token's own logprob; NaN when there is none or it is not finite."""
    found = entry.get(str(token)) if isinstance(entry, dict) else None
    value = found.get("logprob") if isinstance(found, dict) else None
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return math.nan
