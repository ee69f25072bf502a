"""The object store: a local folder, S3, GCS or Azure behind obstore.

A key is either absent or whole: a local file is written aside, synced and renamed; an object store shows an object
when its upload is complete. What a key means stands in keys.py.
"""

import asyncio
import contextlib
import os
import re
import secrets
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from openmint.adapters.escaping import shown
from openmint.errors import BadName, NotFound, StoreUnavailable, TooLarge

PARTIAL_FOLDER = ".partial"
"""Files that are being written, inside a local store: on its file system, and under no key."""

MAX_PARALLEL_READS = 8
CHUNK_BYTES = 4 << 20
CONNECT_TIMEOUT = timedelta(seconds=5)
REQUEST_TIMEOUT = timedelta(seconds=120)  # one request; 500 MB at 5 MB/s
RETRY_TIMEOUT = timedelta(seconds=20)  # a third of the longest lease; the caller's own retry comes after

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
MAX_KEY_CHARACTERS = 512


class Sink(Protocol):
    """What sees bytes as they pass, such as a hash."""

    def update(self, data: bytes, /) -> None:
        """Take the next bytes."""
        ...


class Store:
    """Files under keys."""

    def __init__(self, backend: ObjectStore, url: str, local_root: Path | None) -> None:
        self._backend = backend
        self._local_root = local_root
        self.url = url

    @classmethod
    def open(cls, url: str, options: Mapping[str, str] | None = None) -> "Store":
        """Open `file:///folder` (made if absent), `s3://bucket/prefix`, `gs://…` or `az://…`.

        `options` are obstore's settings of that kind of store (endpoint, region, access_key_id …); what is not
        given comes from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID …). Credentials never stand in the URL.
        Raises: BadName for a URL that can't be a store; StoreUnavailable when the folder can't be made.
        """
        parts = urlsplit(url)
        if parts.scheme == "file":
            root = Path(unquote(parts.path))
            if parts.netloc or not root.is_absolute():
                raise BadName(f"store {shown(url)} is not an absolute file:// URL", field="store_url")
            with _translated(url):
                root.mkdir(parents=True, exist_ok=True)
                return cls(LocalStore(root), url, root)
        if parts.scheme not in ("s3", "gs", "az"):
            raise BadName(f"store {shown(url)} is none of file://, s3://, gs:// and az://", field="store_url")
        if parts.username or parts.password or not parts.netloc:
            raise BadName("a store's URL names a bucket and carries no credentials", field="store_url")
        return cls(_open_remote(url, options or {}), url, None)

    async def put_file(self, key: str, path: Path) -> None:
        """Store a file's bytes under a key; readers see all of it or nothing. Raises: StoreUnavailable."""
        _check_key(key)
        with _translated(key):
            if self._local_root is not None:
                await asyncio.to_thread(_copy_in, path, self._local_root, key)
            else:
                await obstore.put_async(self._backend, key, path)

    async def put_bytes(self, key: str, data: bytes) -> None:
        """Store bytes under a key; readers see all of them or nothing. Raises: StoreUnavailable."""
        _check_key(key)
        with _translated(key):
            if self._local_root is not None:
                await asyncio.to_thread(_write_in, data, self._local_root, key)
            else:
                await obstore.put_async(self._backend, key, data)

    async def get_bytes(self, key: str, max_bytes: int = 64 << 20) -> bytes:
        """The bytes under a key. Raises: NotFound, TooLarge above `max_bytes`, StoreUnavailable."""
        held = bytearray()
        async for chunk in self._stream(key, max_bytes):
            held += chunk
        return bytes(held)

    async def fetch_to(self, key: str, path: Path, max_bytes: int | None = None, sink: Sink | None = None) -> int:
        """Copy what is under a key to `path`, which is absent until it is whole; the number of bytes.

        `sink` sees every chunk as it is written.

        Raises: NotFound, TooLarge above `max_bytes`, StoreUnavailable.
        """
        _check_key(key)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        try:
            with _translated(key):
                if self._local_root is not None:
                    source = self._local_root / key
                    size = await asyncio.to_thread(_copy_out, source, partial, key, max_bytes, sink)
                else:
                    size = await self._stream_to(partial, key, max_bytes, sink)
                partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)
        return size

    async def _stream_to(self, path: Path, key: str, max_bytes: int | None, sink: Sink | None) -> int:
        size = 0
        # Chunks are small beside a disk's own cache, so writing them here holds the loop for microseconds.
        with path.open("wb") as file:
            async for chunk in self._stream(key, max_bytes):
                size += file.write(chunk)
                if sink is not None:
                    sink.update(chunk)
        return size

    async def exists(self, key: str) -> bool:
        """True when something whole is under the key. Raises: StoreUnavailable."""
        return await self.size(key) is not None

    async def size(self, key: str) -> int | None:
        """Bytes under the key, None when there is nothing. Raises: StoreUnavailable."""
        _check_key(key)
        try:
            with _translated(key):
                meta = await obstore.head_async(self._backend, key)
        except NotFound:
            return None
        return int(meta["size"])

    async def list(self, prefix: str, max_keys: int | None = None) -> list[str]:
        """Keys under a prefix that ends with a slash (or all, for an empty one), sorted. Raises: StoreUnavailable."""
        if prefix:
            _check_key(prefix.rstrip("/"))
        keys: list[str] = []
        with _translated(prefix):
            async for page in obstore.list(self._backend, prefix or None, chunk_size=1000):
                keys.extend(str(meta["path"]) for meta in page)
                if max_keys is not None and len(keys) >= max_keys:
                    break
        return sorted(key for key in keys if not key.startswith(f"{PARTIAL_FOLDER}/"))[:max_keys]

    async def delete(self, key: str) -> None:
        """Delete what is under a key; nothing there is fine too. Raises: StoreUnavailable."""
        _check_key(key)
        with contextlib.suppress(NotFound), _translated(key):
            await obstore.delete_async(self._backend, key)

    async def delete_partial(self, before_s: float) -> int:
        """Delete what writers that died before `before_s` (seconds of the epoch) left in a local store; how many."""
        if self._local_root is None:
            return 0
        with _translated(PARTIAL_FOLDER):
            return await asyncio.to_thread(_sweep_partial, self._local_root / PARTIAL_FOLDER, before_s)

    async def _stream(self, key: str, max_bytes: int | None) -> AsyncGenerator[bytes]:
        _check_key(key)
        size = 0
        with _translated(key):
            found = await obstore.get_async(self._backend, key)
            if max_bytes is not None and found.meta["size"] > max_bytes:
                raise TooLarge(f"{key} has {found.meta['size']} bytes, more than {max_bytes}")
            async for chunk in found.stream(min_chunk_size=CHUNK_BYTES):
                size += len(chunk)
                if max_bytes is not None and size > max_bytes:
                    raise TooLarge(f"{key} has more than {max_bytes} bytes")
                yield bytes(chunk)


def _open_remote(url: str, options: Mapping[str, str]) -> ObjectStore:
    endpoint = next((options[name] for name in ("endpoint", "endpoint_url", "aws_endpoint") if name in options), None)
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
    client_options: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT,
        "timeout": REQUEST_TIMEOUT,
        "allow_http": endpoint.startswith("http://"),
    }
    config = cast(Any, dict(options))
    try:
        return from_url(
            url,
            config=config or None,
            client_options=cast(Any, client_options),
            retry_config={"max_retries": 5, "retry_timeout": RETRY_TIMEOUT},
        )
    except (BaseError, ValueError) as error:
        raise BadName(f"store {shown(url)} can't be opened: {str(error)[:300]}", field="store_url") from error


def _check_key(key: str) -> None:
    if len(key) > MAX_KEY_CHARACTERS or not _KEY.fullmatch(key):
        raise BadName(f"{shown(key)} is not a key of the store")


@contextlib.contextmanager
def _translated(what: str) -> Generator[None]:
    """Turn the back ends' errors into ours, keeping their cause."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"{shown(what)} is not in the store") from error
    except (BaseError, OSError, TimeoutError) as error:
        raise StoreUnavailable(f"{shown(what)}: {type(error).__name__}: {str(error)[:300]}") from error


def _copy_in(source: Path, root: Path, key: str) -> None:
    with source.open("rb") as incoming:
        _write_aside(root, key, iter(lambda: incoming.read(CHUNK_BYTES), b""))


def _copy_out(source: Path, target: Path, key: str, max_bytes: int | None, sink: Sink | None) -> int:
    size = 0
    with source.open("rb") as file, target.open("wb") as out:
        while chunk := file.read(CHUNK_BYTES):
            size += len(chunk)
            if max_bytes is not None and size > max_bytes:
                raise TooLarge(f"{key} has more than {max_bytes} bytes")
            out.write(chunk)
            if sink is not None:
                sink.update(chunk)
    return size


def _write_in(data: bytes, root: Path, key: str) -> None:
    _write_aside(root, key, iter((data,)))


def _write_aside(root: Path, key: str, chunks: Iterable[bytes]) -> None:
    partial = root / PARTIAL_FOLDER / secrets.token_hex(16)
    partial.parent.mkdir(exist_ok=True)
    try:
        with partial.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        final = root / key
        final.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(final)
        # Without this the name, unlike the bytes, may be lost with the power.
        descriptor = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    finally:
        partial.unlink(missing_ok=True)


def _sweep_partial(folder: Path, before_s: float) -> int:
    if not folder.is_dir():
        return 0
    old = [entry for entry in folder.iterdir() if entry.stat().st_mtime < before_s]
    for entry in old:
        entry.unlink(missing_ok=True)
    return len(old)
