"""The typed client of the gateway.

```python
async with Client("http://127.0.0.1:8080", key) as openmint:
    job = await openmint.submit(TrainRequested(policy="support", base="smollm2-135m", dataset=rows))
    job = await openmint.wait(job.job_id)
    await openmint.promote("support", revision=str(job.revisions[0].number))
    answer = await openmint.chat("acme/support", "How do I return a shoe?")
```
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote
from uuid import UUID

import httpx
from pydantic import BaseModel, TypeAdapter

from openmint import errors
from openmint.answers import (
    AliasAnswer,
    AliasHistoryAnswer,
    BaseAnswer,
    DatasetAnswer,
    EvaluationAnswer,
    GeneratedAnswer,
    JobAnswer,
    JsonObject,
    KeyAnswer,
    Message,
    MoveAnswer,
    Page,
    PolicyAnswer,
    RevisionAnswer,
)
from openmint.errors import BadRequest, LoadTimeout, OpenmintError, TryAgain
from openmint.events import TrainRequested

CONTROL_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 600.0
"""Longer than the gateway's own deadlines, so that its error is seen and not ours."""

UPLOAD_TIMEOUT_S = 300.0
POLL_S = 0.5

Wanted = TypeVar("Wanted")


class GatewayUnreachable(TryAgain):
    """The gateway does not answer."""

    code = "gateway_unreachable"


class Client:
    """Calls the gateway's routes. Every call raises the error of `openmint.errors` that the gateway means."""

    def __init__(self, url: str, key: str, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/"),
            headers={"authorization": f"Bearer {key}"},
            timeout=CONTROL_TIMEOUT_S,
            transport=transport,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    # Jobs

    async def submit(self, request: TrainRequested, *, idempotency_key: str | None = None) -> JobAnswer:
        """Commit a job. The same idempotency key and request give the same job."""
        headers = {"idempotency-key": idempotency_key} if idempotency_key else None
        return await self._call(JobAnswer, "POST", "/v1/jobs", request, headers=headers)

    async def job(self, job_id: UUID | str) -> JobAnswer:
        """A job with its revisions, newest first."""
        return await self._call(JobAnswer, "GET", f"/v1/jobs/{job_id}")

    async def jobs(self, *, policy: str | None = None, after: str | None = None, limit: int = 100) -> Page[JobAnswer]:
        """The tenant's jobs, newest first."""
        return await self._call(
            Page[JobAnswer], "GET", "/v1/jobs", params=_params(policy=policy, after=after, limit=limit)
        )

    async def cancel(self, job_id: UUID | str) -> JobAnswer:
        """Stop a job."""
        return await self._call(JobAnswer, "POST", f"/v1/jobs/{job_id}/cancel")

    async def watch(self, job_id: UUID | str) -> AsyncIterator[JobAnswer]:
        """The job now, at each change, and at its end. A connection that breaks is opened again."""
        while True:
            try:
                async for job in self._events(f"/v1/jobs/{job_id}/events"):
                    yield job
                    if job.is_ended:
                        return
            except GatewayUnreachable:
                await asyncio.sleep(POLL_S)

    async def wait(self, job_id: UUID | str, *, timeout_s: float = 3600.0, decided: bool = True) -> JobAnswer:
        """Wait until the job has ended and, unless `decided` is False, its revisions have passed or failed the gate.

        Raises: TimeoutError.
        """
        async with asyncio.timeout(timeout_s):
            async for job in self.watch(job_id):
                if job.is_ended:
                    break
            while True:
                job = await self.job(job_id)
                if not decided or all(revision.is_decided for revision in job.revisions):
                    return job
                await asyncio.sleep(POLL_S)

    # Policies, revisions, aliases

    async def make_policy(self, name: str, base: str) -> PolicyAnswer:
        """Make a policy, or get the one that is there."""
        return await self._call(PolicyAnswer, "POST", "/v1/policies", {"name": name, "base": base})

    async def policies(self, *, after: str | None = None, limit: int = 100) -> Page[PolicyAnswer]:
        """The tenant's policies by name."""
        return await self._call(Page[PolicyAnswer], "GET", "/v1/policies", params=_params(after=after, limit=limit))

    async def revisions(self, policy: str, *, after: str | None = None, limit: int = 100) -> Page[RevisionAnswer]:
        """A policy's revisions, newest first."""
        path = f"/v1/policies/{_part(policy)}/revisions"
        return await self._call(Page[RevisionAnswer], "GET", path, params=_params(after=after, limit=limit))

    async def revision(self, policy: str, selector: str) -> RevisionAnswer:
        """A revision by id, number, `step-<n>`, digest or alias."""
        return await self._call(RevisionAnswer, "GET", _revision_path(policy, selector))

    async def evaluations(self, policy: str, selector: str) -> list[EvaluationAnswer]:
        """What was measured of a revision."""
        return await self._call(list[EvaluationAnswer], "GET", f"{_revision_path(policy, selector)}/evaluations")

    async def report(self, evaluation_id: UUID | str) -> JsonObject:
        """The whole report of an evaluation."""
        return await self._call(JsonObject, "GET", f"/v1/evaluations/{evaluation_id}/report")

    async def waive(self, policy: str, selector: str, reason: str) -> RevisionAnswer:
        """Let a rejected revision pass on a person's word."""
        return await self._call(RevisionAnswer, "POST", f"{_revision_path(policy, selector)}/waive", {"reason": reason})

    async def release(self, policy: str, revision_id: UUID, reason: str) -> RevisionAnswer:
        """Put a quarantined revision back to where it was."""
        path = f"{_revision_path(policy, str(revision_id))}/release"
        return await self._call(RevisionAnswer, "POST", path, {"reason": reason})

    async def aliases(self, policy: str) -> list[AliasAnswer]:
        """All aliases of a policy."""
        return await self._call(list[AliasAnswer], "GET", f"/v1/policies/{_part(policy)}/aliases")

    async def alias(self, policy: str, alias: str = "production") -> AliasAnswer:
        """Where an alias points, and its version."""
        return await self._call(AliasAnswer, "GET", _alias_path(policy, alias))

    async def alias_history(self, policy: str, alias: str = "production") -> list[AliasHistoryAnswer]:
        """The moves of an alias, newest first."""
        return await self._call(list[AliasHistoryAnswer], "GET", f"{_alias_path(policy, alias)}/history")

    async def promote(
        self,
        policy: str,
        revision: str,
        *,
        alias: str = "production",
        expected_version: int | None = None,
        reason: str = "",
        wait_visible: bool = True,
    ) -> MoveAnswer:
        """Let an alias point to an eligible revision. Raises: AliasConflict when it is not at `expected_version`."""
        body = {"revision": revision, "expected_version": expected_version, "reason": reason}
        return await self._call(MoveAnswer, "PUT", _alias_path(policy, alias), body, params=_wait(wait_visible))

    async def roll_back(
        self,
        policy: str,
        *,
        alias: str = "production",
        to_number: int | None = None,
        expected_version: int | None = None,
        reason: str = "",
        wait_visible: bool = True,
    ) -> MoveAnswer:
        """Move an alias to the revision that it pointed to before, or to a number."""
        body = {"to_number": to_number, "expected_version": expected_version, "reason": reason}
        path = f"{_alias_path(policy, alias)}/rollback"
        return await self._call(MoveAnswer, "POST", path, body, params=_wait(wait_visible))

    async def freeze(self, policy: str, alias: str = "production", *, reason: str = "") -> MoveAnswer:
        """Let nobody move an alias."""
        return await self._call(MoveAnswer, "POST", f"{_alias_path(policy, alias)}/freeze", {"reason": reason})

    async def thaw(self, policy: str, alias: str = "production", *, reason: str = "") -> MoveAnswer:
        """Let an alias be moved again."""
        return await self._call(MoveAnswer, "POST", f"{_alias_path(policy, alias)}/thaw", {"reason": reason})

    # Data, bases, engines, keys

    async def put_data(self, rows: bytes | Sequence[Mapping[str, Any]]) -> DatasetAnswer:
        """Put JSON Lines, or rows; the digest names them in jobs."""
        data = rows if isinstance(rows, bytes) else b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        response = await self._send("POST", "/v1/data", content=data, timeout=UPLOAD_TIMEOUT_S)
        return DatasetAnswer.model_validate_json(response.content)

    async def bases(self) -> list[BaseAnswer]:
        """The base models."""
        return await self._call(list[BaseAnswer], "GET", "/v1/bases")

    async def engines(self) -> list[JsonObject]:
        """The engines as this gateway sees them."""
        return await self._call(list[JsonObject], "GET", "/v1/engines")

    async def loads(self) -> list[JsonObject]:
        """Cold loads under way."""
        return await self._call(list[JsonObject], "GET", "/v1/loads")

    async def make_key(self, scopes: Sequence[str], *, label: str = "") -> KeyAnswer:
        """Make a key for this tenant; its text is told once."""
        return await self._call(KeyAnswer, "POST", "/v1/keys", {"scopes": list(scopes), "label": label})

    async def keys(self) -> list[KeyAnswer]:
        """This tenant's keys."""
        return await self._call(list[KeyAnswer], "GET", "/v1/keys")

    async def revoke_key(self, key_id: str) -> KeyAnswer:
        """End a key for good."""
        return await self._call(KeyAnswer, "DELETE", f"/v1/keys/{_part(key_id)}")

    # Inference

    async def chat(self, model: str, messages: str | Sequence[Message], **fields: Any) -> GeneratedAnswer:
        """Ask a policy or a base model. `fields` are OpenAI's, such as max_tokens and temperature."""
        spoken = [Message(role="user", content=messages)] if isinstance(messages, str) else messages
        body = {"model": model, "messages": [message.model_dump() for message in spoken], **fields}
        return await self._generate("/v1/chat/completions", body)

    async def complete(self, model: str, prompt: str, **fields: Any) -> GeneratedAnswer:
        """Let a policy or a base model go on from a prompt."""
        return await self._generate("/v1/completions", {"model": model, "prompt": prompt, **fields})

    async def stream_chat(self, model: str, messages: str | Sequence[Message], **fields: Any) -> AsyncIterator[str]:
        """The answer's text piece by piece. Raises: the gateway's error, also one in mid-stream."""
        spoken = [Message(role="user", content=messages)] if isinstance(messages, str) else messages
        body = {"model": model, "messages": [message.model_dump() for message in spoken], "stream": True, **fields}
        async for _, data in self._stream("POST", "/v1/chat/completions", body):
            if data == "[DONE]":
                return
            chunk = json.loads(data)
            if "error" in chunk:
                raise _error_from(0, chunk)
            for choice in chunk.get("choices", []):
                yield choice.get("delta", {}).get("content") or ""

    async def _generate(self, path: str, body: Mapping[str, Any]) -> GeneratedAnswer:
        response = await self._send("POST", path, json=body, timeout=ANSWER_TIMEOUT_S)
        content = response.json()
        choice = content["choices"][0]
        usage = content.get("usage") or {}
        return GeneratedAnswer(
            text=choice["message"]["content"] or "" if "message" in choice else choice["text"],
            model=content["model"],
            revision=response.headers["x-openmint-revision"],
            request_id=response.headers["x-openmint-request-id"],
            prompt_tokens=usage.get("prompt_tokens") or 0,
            completion_tokens=usage.get("completion_tokens") or 0,
        )

    async def _call(
        self,
        wanted: type[Wanted],
        method: str,
        path: str,
        body: BaseModel | Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Wanted:
        content: dict[str, Any] = {}
        if isinstance(body, BaseModel):
            content = {"content": body.model_dump_json(exclude_none=True)}
        elif body is not None:
            content = {"json": body}
        response = await self._send(method, path, params=params, headers=headers, **content)
        return TypeAdapter(wanted).validate_json(response.content)

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = await self._http.request(method, path, **options)
        except httpx.TimeoutException as error:
            raise LoadTimeout(f"{method} {path} was not answered in time") from error
        except httpx.TransportError as error:
            raise GatewayUnreachable(f"the gateway at {self._http.base_url} does not answer: {error}") from error
        _raise_for(response.status_code, response.content)
        return response

    async def _events(self, path: str) -> AsyncIterator[JobAnswer]:
        async for name, data in self._stream("GET", path, None):
            if name == "job":
                yield JobAnswer.model_validate_json(data)

    async def _stream(self, method: str, path: str, body: Mapping[str, Any] | None) -> AsyncIterator[tuple[str, str]]:
        """Name and data of each server-sent event; every event of ours is one line of data."""
        name = "message"
        try:
            async with self._http.stream(method, path, json=body, timeout=ANSWER_TIMEOUT_S) as response:
                if response.status_code >= 400:
                    _raise_for(response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    if line.startswith("event: "):
                        name = line[7:]
                    elif line.startswith("data: "):
                        yield name, line[6:]
                        name = "message"
        except httpx.TransportError as error:
            raise GatewayUnreachable(f"the gateway at {self._http.base_url} broke off: {error}") from error


_BY_CODE: dict[str, type[OpenmintError]] = {
    kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, OpenmintError)
}


def _raise_for(status: int, body: bytes) -> None:
    if status < 400:
        return
    try:
        content = json.loads(body)
    except ValueError:
        content = {}
    raise _error_from(status, content if isinstance(content, dict) else {})


def _error_from(status: int, content: Mapping[str, Any]) -> OpenmintError:
    """Our error again, from problem+json or OpenAI's form."""
    inner = content.get("error")
    if isinstance(inner, dict):
        content = {"detail": inner.get("message"), "code": inner.get("code"), "field": inner.get("param")}
    detail = content.get("detail") or f"the gateway answered with status {status}"
    unknown = BadRequest if 400 <= status < 500 else OpenmintError
    kind = _BY_CODE.get(str(content.get("code")), unknown)
    return kind(str(detail), field=content.get("field"), retry_after_s=content.get("retry_after_s"))


def _params(**values: str | int | None) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value is not None}


def _wait(visible: bool) -> dict[str, str]:
    return {"wait": "visible"} if visible else {}


def _part(name: str) -> str:
    return quote(name, safe="")


def _revision_path(policy: str, selector: str) -> str:
    return f"/v1/policies/{_part(policy)}/revisions/{_part(selector)}"


def _alias_path(policy: str, alias: str) -> str:
    return f"/v1/policies/{_part(policy)}/aliases/{_part(alias)}"
