"""Jobs: submit, list, look at, watch, cancel."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from openmint.catalog import Catalog, jobs, policies, revisions
from openmint.catalog.rows import Job, JobState
from openmint.errors import BadRequest, CallerMistake
from openmint.events import Cause, TrainRequested
from openmint_gateway.control.parts import Answer, Limit, Page, Parts, Reader, Trainer
from openmint_gateway.control.revisions import RevisionAnswer
from openmint_gateway.intake import TrainMessage
from openmint_gateway.train_request import parse_train_request

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

WATCH_EVERY_S = 0.5
COMMENT_EVERY_S = 10.0
REVISIONS_SHOWN = 100


class JobAnswer(Answer):
    """One request to train, and how far it is."""

    job_id: UUID
    policy: str
    base: str
    state: JobState
    step: int = Field(description="Of the last checkpoint")
    steps: int
    tokens: int
    final_loss: float | None
    progress: dict[str, Any] | None
    cause: Cause | None
    cancel_requested: bool
    idempotency_key: str | None
    spec: dict[str, Any]
    created_at: datetime
    started_at: datetime | None
    changed_at: datetime


class JobDetails(JobAnswer):
    """A job with the revisions that it has made so far, newest first."""

    revisions: list[RevisionAnswer]


@router.post(
    "",
    status_code=202,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/TrainRequested"}}},
        }
    },
)
async def submit_job(
    parts: Parts,
    caller: Trainer,
    request: Request,
    response: Response,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
) -> JobAnswer:
    """Train a policy. 202: the job is committed and ends exactly once; the same idempotency key gives the same job."""
    train_request = _with_key(parse_train_request(await request.body()), idempotency_key)
    request_id: str = request.state.request_id
    message = TrainMessage(caller.tenant, "http", f"http-{request_id}")
    try:
        job, is_new = await parts.intake.accept(message, train_request)
    except CallerMistake:
        parts.metrics.taken_in("refused")
        raise
    parts.metrics.taken_in("accepted" if is_new else "known")
    response.headers["location"] = f"/v1/jobs/{job.job_id}"
    return JobAnswer.model_validate(job)


@router.get("")
async def list_jobs(
    parts: Parts, caller: Reader, policy: str | None = None, after: UUID | None = None, limit: Limit = 100
) -> Page[JobAnswer]:
    """The tenant's jobs, newest first."""
    async with parts.catalog.connection() as conn:
        policy_id = None
        if policy is not None:
            policy_id = (await policies.find_policy(conn, caller.tenant, policy)).policy_id
        found = await jobs.list_jobs(conn, caller.tenant, after, limit, policy_id=policy_id)
    items = [JobAnswer.model_validate(job) for job in found]
    return Page(items=items, next=str(found[-1].job_id) if len(found) == limit else None)


@router.get("/{job_id}")
async def get_job(parts: Parts, caller: Reader, job_id: UUID) -> JobDetails:
    """One job and its revisions."""
    return await _details(parts.catalog, caller.tenant, job_id)


@router.post("/{job_id}/cancel", status_code=202)
async def cancel_job(parts: Parts, caller: Trainer, job_id: UUID) -> JobAnswer:
    """Stop a job. One that nobody has started is cancelled at once, a running one at its next step."""
    async with parts.catalog.transaction() as conn:
        return JobAnswer.model_validate(
            await jobs.request_cancel(conn, caller.tenant, job_id, cancelled_by=caller.key_id)
        )


@router.get(
    "/{job_id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "Events named `job`, each a JobDetails"}},
)
async def watch_job(parts: Parts, caller: Reader, job_id: UUID) -> StreamingResponse:
    """The job as server-sent events: now, at each change, and its end; then the stream closes."""
    first = await _details(parts.catalog, caller.tenant, job_id)
    return StreamingResponse(
        _watch(parts.catalog, caller.tenant, first),
        media_type="text/event-stream",
        headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
    )


async def _watch(catalog: Catalog, tenant: str, details: JobDetails) -> AsyncIterator[str]:
    told = ""
    silent_s = 0.0
    while True:
        text = details.model_dump_json()
        if text != told:
            told, silent_s = text, 0.0
            yield f"event: job\ndata: {text}\n\n"
        elif silent_s >= COMMENT_EVERY_S:
            silent_s = 0.0
            yield ": unchanged\n\n"
        if details.state.is_ended:
            return
        await asyncio.sleep(WATCH_EVERY_S)
        silent_s += WATCH_EVERY_S
        details = await _details(catalog, tenant, details.job_id)


async def _details(catalog: Catalog, tenant: str, job_id: UUID) -> JobDetails:
    async with catalog.connection() as conn:
        job = await jobs.find_job(conn, job_id, tenant)
        made = await revisions.list_revisions(conn, job.policy_id, None, REVISIONS_SHOWN)
    mine = [RevisionAnswer.model_validate(revision) for revision in made if revision.job_id == job_id]
    return JobDetails(**_fields(job), revisions=mine)


def _fields(job: Job) -> dict[str, Any]:
    return JobAnswer.model_validate(job).model_dump()


def _with_key(train_request: TrainRequested, idempotency_key: str | None) -> TrainRequested:
    if idempotency_key is None:
        return train_request
    if train_request.idempotency_key not in (None, idempotency_key):
        raise BadRequest("the header Idempotency-Key and the body's idempotency_key differ", field="idempotency_key")
    return train_request.model_copy(update={"idempotency_key": idempotency_key})
