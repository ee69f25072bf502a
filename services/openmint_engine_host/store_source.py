"""Revisions from the object store, verified: signature, digest, base and bytes.

What an exporter signs has passed every check that an adapter must pass, in a child process with limits; here the
signature stands for them. What an engine could be hurt by, names, shapes and values, is looked at again while packing.
"""

from pathlib import Path

from openmint.adapters.facts import WEIGHTS_FILE
from openmint.adapters.revision_files import fetch_signed_weights
from openmint.adapters.signing import TrustedKeys
from openmint.adapters.store import Store
from openmint.bases import BaseFacts
from openmint.errors import BadAdapter
from openmint_engine_host.staging import VerifiedAdapter


class StoreSource:
    """A `RevisionSource` over the store."""

    def __init__(self, store: Store, base: BaseFacts, keys: TrustedKeys) -> None:
        self._store = store
        self._base = base
        self._keys = keys

    async def fetch(self, digest: str, folder: Path) -> VerifiedAdapter:
        """Bring a revision's weights, which are those that its signed manifest names.

        Raises: NotFound, BadAdapter, StoreUnavailable.
        """
        weights = folder / WEIGHTS_FILE
        head = await fetch_signed_weights(self._store, digest, weights, self._keys)
        if head.base_digest != self._base.digest:
            raise BadAdapter(f"{digest} is for base {head.base} {head.base_digest}, not {self._base.digest}")
        return VerifiedAdapter(weights, head.rank, head.alpha)
