"""A revision's folder on its way into the store and out of it again, verified against its digest and signature."""

import asyncio
import hashlib
from pathlib import Path

from openmint.adapters.facts import CONFIG_FILE, MANIFEST_FILE, SIGNATURE_FILE, WEIGHTS_FILE
from openmint.adapters.folder import AdapterFolder, sha256_of
from openmint.adapters.keys import revision_key, revision_prefix
from openmint.adapters.manifest import Manifest, ManifestHead, digest_of
from openmint.adapters.signing import MAX_SIGNATURE_FILE_BYTES, SigningKey, TrustedKeys
from openmint.adapters.store import Store
from openmint.errors import BadAdapter, TooLarge

MAX_MANIFEST_BYTES = 16 << 20


def sign_folder(folder: Path, manifest: Manifest, key: SigningKey) -> str:
    """Write the manifest and its signature into the folder that it describes; the revision's digest."""
    raw = manifest.canonical_bytes()
    (folder / MANIFEST_FILE).write_bytes(raw)
    (folder / SIGNATURE_FILE).write_bytes(key.sign(raw))
    return digest_of(raw)


async def put_revision_folder(store: Store, digest: str, folder: Path) -> None:
    """Store a checked, signed folder under its digest. The same revision again changes nothing.

    The manifest goes last, so a revision whose manifest is there has all its files. Raises: StoreUnavailable.
    """
    for name in (WEIGHTS_FILE, CONFIG_FILE, SIGNATURE_FILE, MANIFEST_FILE):
        await store.put_file(revision_key(digest, name), folder / name)


async def fetch_revision_folder(store: Store, digest: str, folder: Path, trusted: TrustedKeys) -> Manifest:
    """Bring a revision into `folder`, which exists and is empty, and verify signature, digest and every file.

    Raises: NotFound; BadAdapter naming the file whose bytes are not those of the revision; StoreUnavailable.
    """
    try:
        raw, signature = await _signed_manifest(store, digest, trusted)
        manifest = await asyncio.to_thread(Manifest.parse, raw)
        if set(manifest.files) != {CONFIG_FILE, WEIGHTS_FILE}:
            raise BadAdapter(f"{MANIFEST_FILE} does not name exactly the files of an adapter", field="files")
        for name, file in manifest.files.items():
            await store.fetch_to(revision_key(digest, name), folder / name, max_bytes=file.bytes)
    except TooLarge as error:
        raise BadAdapter(f"{digest}: {error.detail}", field=digest) from error
    (folder / MANIFEST_FILE).write_bytes(raw)
    (folder / SIGNATURE_FILE).write_bytes(signature)
    await asyncio.to_thread(_verify_files, folder, manifest)
    return manifest


async def fetch_signed_weights(store: Store, digest: str, path: Path, trusted: TrustedKeys) -> ManifestHead:
    """Bring a revision's weights to `path` and verify signature, digest and the file's bytes on their way.

    What an exporter has checked and signed is not checked tensor by tensor again: at thousands of tensors that took
    ten times what the bytes do. Raises: NotFound; BadAdapter naming the file; StoreUnavailable.
    """
    try:
        raw, _ = await _signed_manifest(store, digest, trusted)
        head = ManifestHead.of_signed(raw)
        file = head.files.get(WEIGHTS_FILE)
        if file is None:
            raise BadAdapter(f"{MANIFEST_FILE} names no {WEIGHTS_FILE}", field="files")
        found = hashlib.sha256()
        await store.fetch_to(revision_key(digest, WEIGHTS_FILE), path, max_bytes=file.bytes, sink=found)
    except TooLarge as error:
        raise BadAdapter(f"{digest}: {error.detail}", field=digest) from error
    _check_sha256(WEIGHTS_FILE, found.hexdigest(), file.sha256)
    return head


async def delete_revision_files(store: Store, digest: str) -> None:
    """Delete a revision's files, the manifest first, so that it is never there without them."""
    await store.delete(revision_key(digest, MANIFEST_FILE))
    for key in await store.list(revision_prefix(digest)):
        await store.delete(key)


async def _signed_manifest(store: Store, digest: str, trusted: TrustedKeys) -> tuple[bytes, bytes]:
    """The bytes of a revision's manifest, which are those of its digest, and of the signature that holds for them."""
    raw = await store.get_bytes(revision_key(digest, MANIFEST_FILE), MAX_MANIFEST_BYTES)
    signature = await store.get_bytes(revision_key(digest, SIGNATURE_FILE), MAX_SIGNATURE_FILE_BYTES)
    if digest_of(raw) != digest:
        raise BadAdapter(f"{MANIFEST_FILE} in the store has digest {digest_of(raw)}, not {digest}", field=digest)
    await asyncio.to_thread(trusted.verify, raw, signature)
    return raw, signature


def _check_sha256(name: str, found: str, named: str) -> None:
    if found != named:
        raise BadAdapter(f"{name} has sha256 {found}, not {named} as its manifest says", field=name)


def _verify_files(path: Path, manifest: Manifest) -> None:
    with AdapterFolder(path) as folder:
        for name, file in manifest.files.items():
            with folder.open(name, file.bytes) as descriptor:
                found = sha256_of(descriptor)
            _check_sha256(name, found, file.sha256)
