"""Datasets: put rows into the store, and see what was put."""

import asyncio

from fastapi import APIRouter, Request

from openmint.catalog import datasets
from openmint.catalog.rows import Dataset
from openmint.datasets import CanonicalDataset, canonical_dataset, read_json_lines
from openmint.errors import TooLarge
from openmint_gateway.control.parts import Limit, Parts, Reader, Trainer
from openmint_gateway.dataset_store import put_dataset

router = APIRouter(prefix="/v1/data", tags=["data"])

_UPLOADS = asyncio.Semaphore(4)
"""An upload is held in memory while it is checked."""

_JSON_LINES_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/jsonl": {"schema": {"type": "string"}}},
        "description": "JSON Lines: OpenAI chat rows {messages: [...]} or {prompt, completion} rows",
    }
}


@router.post("", status_code=201, openapi_extra=_JSON_LINES_BODY)
async def put_data(parts: Parts, caller: Trainer, request: Request) -> Dataset:
    """Put rows; the digest that comes back names them in jobs. The same rows again give the same digest."""
    async with _UPLOADS:
        data = await _read_capped(request, parts.settings.upload_bytes_max)
        dataset = await asyncio.to_thread(_canonical, data)
        async with parts.catalog.connection() as conn:
            return await put_dataset(conn, parts.store, caller.tenant, dataset)


@router.get("")
async def list_data(parts: Parts, caller: Reader, limit: Limit = 100) -> list[Dataset]:
    """The tenant's datasets, newest first."""
    async with parts.catalog.connection() as conn:
        return await datasets.list_datasets(conn, caller.tenant, limit)


async def _read_capped(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise TooLarge(f"the data is larger than {limit} bytes", field="body")
    return bytes(body)


def _canonical(data: bytes) -> CanonicalDataset:
    return canonical_dataset(read_json_lines(data))
