"""Where a job's rows come from: the store, under the digest that the job names, or the request itself."""

import hashlib
from collections.abc import Sequence

from openmint.adapters.keys import dataset_key
from openmint.adapters.store import Store
from openmint.datasets import JsonRow, read_json_lines
from openmint.errors import BadDataset
from openmint.events import DatasetRef
from openmint.identifiers import digest_bytes

MAX_DATASET_BYTES = 1 << 30
"""Rows are held in memory while a job trains."""


async def read_dataset(store: Store, tenant: str, ref: DatasetRef) -> Sequence[JsonRow]:
    """The rows of a job.

    Raises: NotFound, TooLarge, BadDataset when the bytes are not those that the digest names, StoreUnavailable.
    """
    if ref.digest is None:
        return ref.rows or []
    data = await store.get_bytes(dataset_key(tenant, ref.digest), MAX_DATASET_BYTES)
    if hashlib.sha256(data).digest() != digest_bytes(ref.digest):
        raise BadDataset(f"the bytes of dataset {ref.digest} in the store are not those it names", field="dataset")
    return read_json_lines(data)
