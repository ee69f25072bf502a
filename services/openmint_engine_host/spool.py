"""Prepared adapters on this machine: one folder per (revision, layout), bounded in bytes.

A folder appears by one rename when it is complete. Folders of resident adapters are never dropped, since their name in
the engine may be read again as long as it lives. What is left from an earlier life is checked before its first use.
"""

import shutil
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from openmint.identifiers import digest_from_hex
from openmint_engine_host.layout import FILE_NAME, BadLayout, LayoutHeader, check_blob, read_header


@dataclass(frozen=True, slots=True)
class Prepared:
    """A verified adapter in this engine's layout."""

    digest: str
    layout: str
    folder: Path
    layout_bytes: int
    rank: int


class Spool:
    """The folder of prepared adapters of one engine."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._prepared: OrderedDict[tuple[str, str], Prepared] = OrderedDict()
        folder.mkdir(parents=True, exist_ok=True)
        for stray in folder.glob("*.partial"):
            shutil.rmtree(stray, ignore_errors=True)
        self._unchecked = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}

    def find(self, digest: str, layout: str) -> Prepared | None:
        """The prepared copy, which becomes the most recently used one; None when there is none that can be trusted."""
        key = (digest, layout)
        if key in self._prepared:
            self._prepared.move_to_end(key)
            return self._prepared[key]
        path = self._unchecked.pop(_name(digest, layout), None)
        if path is None:
            return None
        try:
            header = read_header(path / FILE_NAME)
            check_blob(path / FILE_NAME, header)
            if (header.digest, header.layout) != key:
                raise BadLayout(f"{path.name} holds {header.digest}")
        except (OSError, BadLayout):
            shutil.rmtree(path, ignore_errors=True)
            return None
        return self._remember(header, path)

    def add(self, digest: str, layout: str, write: Callable[[Path], LayoutHeader]) -> Prepared:
        """Let `write` make the layout file, then show it. Raises: what `write` raises, leaving nothing behind."""
        final = self._folder / _name(digest, layout)
        partial = final.with_name(final.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            header = write(partial / FILE_NAME)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return self._remember(header, final)

    def drop(self, digest: str, layout: str) -> None:
        """Delete a prepared copy if it is there."""
        self._unchecked.pop(_name(digest, layout), None)
        self._prepared.pop((digest, layout), None)
        shutil.rmtree(self._folder / _name(digest, layout), ignore_errors=True)

    def trim(self, keep: Collection[str]) -> list[str]:
        """Drop least recently used copies until the bound holds; digests in `keep` stay whatever the bound says."""
        dropped: list[str] = []
        excess = sum(p.layout_bytes for p in self._prepared.values()) + self._unchecked_bytes() - self._max_bytes
        for name, path in list(self._unchecked.items()):
            if excess <= 0:
                return dropped
            excess -= _size(path)
            digest, _, layout = name.partition("-")
            self.drop(digest_from_hex(digest), layout)
        for key, prepared in list(self._prepared.items()):
            if excess <= 0:
                break
            if prepared.digest not in keep:
                excess -= prepared.layout_bytes
                self.drop(*key)
                dropped.append(prepared.digest)
        return dropped

    def digests(self, layout: str) -> tuple[str, ...]:
        """Revisions that lie prepared in a layout, least recently used first."""
        return tuple(digest for digest, of_layout in self._prepared if of_layout == layout)

    def _remember(self, header: LayoutHeader, folder: Path) -> Prepared:
        size = (folder / FILE_NAME).stat().st_size
        prepared = Prepared(header.digest, header.layout, folder, size, header.rank)
        self._prepared[header.digest, header.layout] = prepared
        self._prepared.move_to_end((header.digest, header.layout))
        return prepared

    def _unchecked_bytes(self) -> int:
        return sum(_size(path) for path in self._unchecked.values())


def _name(digest: str, layout: str) -> str:
    return f"{digest.removeprefix('sha256:')}-{layout}"


def _size(folder: Path) -> int:
    file = folder / FILE_NAME
    return file.stat().st_size if file.exists() else 0
