"""Revisions from the object store, verified: signature, digest and files, then everything an adapter must be.

The last part runs in a child process with limits: a signature says who wrote a file, not that it can hurt nobody.
"""

from pathlib import Path

from openmint.adapters.facts import WEIGHTS_FILE
from openmint.adapters.inspection import Inspector
from openmint.adapters.revision_files import fetch_revision_folder
from openmint.adapters.signing import TrustedKeys
from openmint.adapters.store import Store
from openmint.bases import BaseFacts
from openmint.errors import BadAdapter
from openmint_engine_host.staging import VerifiedAdapter


class StoreSource:
    """A `RevisionSource` over the store. Close it: one warm child checks adapter after adapter."""

    def __init__(self, store: Store, base: BaseFacts, keys: TrustedKeys) -> None:
        self._inspector = Inspector()
        self._store = store
        self._base = base
        self._keys = keys

    async def fetch(self, digest: str, folder: Path) -> None:
        """Bring a revision's files, which are then those that its signed manifest names.

        Raises: NotFound, BadAdapter, StoreUnavailable.
        """
        manifest = await fetch_revision_folder(self._store, digest, folder, self._keys)
        if manifest.base_digest != self._base.digest:
            raise BadAdapter(f"{digest} is for base {manifest.base} {manifest.base_digest}, not {self._base.digest}")

    async def verify(self, digest: str, folder: Path) -> VerifiedAdapter:
        """Check the adapter against the base. Raises: BadAdapter, InspectionFailed."""
        facts = await self._inspector.inspect(folder, self._base, needs_manifest=True)
        if facts.digest != digest:
            raise BadAdapter(f"{digest}: its files are those of {facts.digest}")
        return VerifiedAdapter(folder / WEIGHTS_FILE, facts.rank, facts.alpha)

    async def aclose(self) -> None:
        """End the child."""
        await self._inspector.close()
