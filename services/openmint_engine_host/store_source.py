"""Revisions from the object store, verified: manifest against digest, signature, base, then the adapter itself.

The checks of the adapter's files run in a child process with limits (`openmint.adapters.inspection`).
"""

from pathlib import Path

from openmint.adapters.facts import CONFIG_FILE, MANIFEST_FILE, SIGNATURE_FILE, WEIGHTS_FILE, AdapterLimits
from openmint.adapters.inspection import inspect_in_child
from openmint.adapters.keys import revision_key
from openmint.adapters.manifest import Manifest, digest_of
from openmint.adapters.signing import MAX_SIGNATURE_FILE_BYTES, TrustedKeys
from openmint.adapters.store import Store
from openmint.bases import BaseFacts
from openmint.errors import BadAdapter, TooLarge
from openmint_engine_host.staging import VerifiedAdapter


class StoreSource:
    """A `RevisionSource` over the store."""

    def __init__(self, store: Store, base: BaseFacts, keys: TrustedKeys, max_adapter_bytes: int) -> None:
        self._store = store
        self._base = base
        self._keys = keys
        self._max_adapter_bytes = max_adapter_bytes
        self._limits = AdapterLimits()

    async def fetch(self, digest: str, folder: Path) -> None:
        """Bring a revision's files, once its manifest is the one that the digest names and is signed.

        Raises: NotFound, BadAdapter, StoreUnavailable.
        """
        try:
            raw = await self._store.get_bytes(revision_key(digest, MANIFEST_FILE), self._limits.max_manifest_bytes)
            signature = await self._store.get_bytes(revision_key(digest, SIGNATURE_FILE), MAX_SIGNATURE_FILE_BYTES)
            if digest_of(raw) != digest:
                raise BadAdapter(f"{digest}: its manifest in the store has digest {digest_of(raw)}")
            self._keys.verify(raw, signature)
            manifest = Manifest.parse(raw)
            self._check_manifest(digest, manifest)
            (folder / MANIFEST_FILE).write_bytes(raw)
            (folder / SIGNATURE_FILE).write_bytes(signature)
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                await self._store.fetch_to(revision_key(digest, name), folder / name, manifest.files[name].bytes)
        except TooLarge as error:
            raise BadAdapter(f"{digest}: {error.detail}") from error

    async def verify(self, digest: str, folder: Path) -> VerifiedAdapter:
        """Check the files against the manifest and the base. Raises: BadAdapter."""
        facts = await inspect_in_child(folder, self._base)
        if facts.digest != digest:
            raise BadAdapter(f"{digest}: its files are those of {facts.digest}")
        return VerifiedAdapter(folder / WEIGHTS_FILE, facts.rank, facts.alpha)

    def _check_manifest(self, digest: str, manifest: Manifest) -> None:
        if manifest.base_digest != self._base.digest:
            raise BadAdapter(f"{digest} is for base {manifest.base} {manifest.base_digest}, not {self._base.digest}")
        if set(manifest.files) != {CONFIG_FILE, WEIGHTS_FILE}:
            raise BadAdapter(f"{digest}: its manifest names other files than {CONFIG_FILE} and {WEIGHTS_FILE}")
        if manifest.adapter_bytes > self._max_adapter_bytes:
            raise BadAdapter(f"{digest} has {manifest.adapter_bytes} bytes, more than {self._max_adapter_bytes}")
