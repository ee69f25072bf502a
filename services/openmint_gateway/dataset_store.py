"""Datasets on their way into the store: the file first, then the catalogue row that makes it visible."""

from openmint.adapters.keys import dataset_key
from openmint.adapters.store import Store
from openmint.catalog import Connection, datasets
from openmint.catalog.rows import Dataset
from openmint.datasets import CanonicalDataset


async def put_dataset(conn: Connection, store: Store, tenant: str, dataset: CanonicalDataset) -> Dataset:
    """Store the rows under their digest and name them for this tenant. The same rows again change nothing."""
    key = dataset_key(tenant, dataset.digest)
    if not await store.exists(key):
        await store.put_bytes(key, dataset.data)
    return await datasets.record_dataset(conn, tenant, dataset.digest, dataset.rows, len(dataset.data), key)
