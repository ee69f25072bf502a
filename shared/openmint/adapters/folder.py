"""An adapter folder on disk, opened so that no path leaves it: every file below one directory descriptor."""

import contextlib
import hashlib
import os
import stat
from collections.abc import Collection, Generator, Iterator
from pathlib import Path

from openmint.adapters.escaping import shown
from openmint.adapters.facts import ADAPTER_FILES
from openmint.errors import BadAdapter

_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a fifo must not make us wait


class AdapterFolder:
    """The folder's regular files. Use as a context manager."""

    def __init__(self, path: Path, allowed: Collection[str] = ADAPTER_FILES) -> None:
        self._path = path
        self._allowed = allowed
        self._descriptor = -1
        self.names: frozenset[str] = frozenset()

    def __enter__(self) -> "AdapterFolder":
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise BadAdapter(f"the adapter folder can't be opened: {error.strerror}") from error
        try:
            self.names = frozenset(self._scan())
        except BaseException:
            os.close(self._descriptor)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def _scan(self) -> Iterator[str]:
        with os.scandir(self._descriptor) as entries:
            for entry in entries:
                if entry.name not in self._allowed:
                    name = shown(entry.name)
                    raise BadAdapter(f"file {name} does not belong into an adapter", field=name[1:-1])
                yield entry.name

    @contextlib.contextmanager
    def open(self, name: str, max_bytes: int) -> Generator[int]:
        """A descriptor of one file. Raises: BadAdapter when it is absent, not a plain file, linked, or too large."""
        if name not in self.names:
            raise BadAdapter(f"{name} is missing", field=name)
        try:
            descriptor = os.open(name, _OPEN_FILE, dir_fd=self._descriptor)
        except OSError as error:
            what = "it is a symbolic link" if _is_link(name, self._descriptor) else error.strerror
            raise BadAdapter(f"{name} can't be opened: {what}", field=name) from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BadAdapter(f"{name} is not a regular file", field=name)
            if status.st_nlink != 1:
                raise BadAdapter(f"{name} is a hard link: it has {status.st_nlink} names", field=name)
            if status.st_size > max_bytes:
                raise BadAdapter(f"{name} has {status.st_size} bytes; the limit is {max_bytes}", field=name)
            yield descriptor
        finally:
            os.close(descriptor)

    def read(self, name: str, max_bytes: int) -> bytes:
        """All bytes of a small file. Raises: as `open`."""
        with self.open(name, max_bytes) as descriptor:
            return os.pread(descriptor, max_bytes + 1, 0)


def sha256_of(descriptor: int) -> str:
    """The sha256 of an open file, hexadecimal."""
    digest = hashlib.sha256()
    position = 0
    while chunk := os.pread(descriptor, 4 << 20, position):
        digest.update(chunk)
        position += len(chunk)
    return digest.hexdigest()


def _is_link(name: str, descriptor: int) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISLNK(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode)
    return False
