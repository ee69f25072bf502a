from pathlib import Path

import pytest

from openmint_engine_host.layout import FILE_NAME, EngineModule, LayoutHeader, ModuleTable, Slice, _write
from openmint_engine_host.spool import Spool

TABLE = ModuleTable("float32", 1, 8, (EngineModule("m", False, (Slice("m", 4, 4),)),))
LAYOUT = TABLE.fingerprint()


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def add(spool: Spool, number: int, blob_bytes: int = 1000) -> None:
    def write(out: Path) -> LayoutHeader:
        return _write(out, [bytes(blob_bytes)], digest(number), TABLE, 1, ())

    spool.add(digest(number), LAYOUT, write)


def test_a_prepared_adapter_is_found_again_after_a_restart(tmp_path: Path):
    add(Spool(tmp_path, 1 << 20), 1)
    assert Spool(tmp_path, 1 << 20).find(digest(1), LAYOUT) is not None


def test_what_was_damaged_between_two_lives_is_dropped(tmp_path: Path):
    add(Spool(tmp_path, 1 << 20), 1)
    (file,) = tmp_path.glob(f"*/{FILE_NAME}")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert Spool(tmp_path, 1 << 20).find(digest(1), LAYOUT) is None
    assert not file.exists()


def test_another_layout_of_the_same_revision_is_not_found(tmp_path: Path):
    spool = Spool(tmp_path, 1 << 20)
    add(spool, 1)
    assert spool.find(digest(1), "0" * 16) is None


def test_the_least_recently_used_is_dropped_first_and_residents_never(tmp_path: Path):
    spool = Spool(tmp_path, 3 * 6000)
    for number in (1, 2, 3):
        add(spool, number)
    spool.find(digest(2), LAYOUT)
    add(spool, 4)
    assert spool.trim(keep={digest(1)}) == [digest(3)]
    assert set(spool.digests(LAYOUT)) == {digest(1), digest(2), digest(4)}


def test_copies_of_a_former_life_are_dropped_before_new_ones(tmp_path: Path):
    old = Spool(tmp_path, 1 << 20)
    add(old, 1)
    spool = Spool(tmp_path, 8000)
    add(spool, 2)
    assert spool.trim(keep=set()) == []
    assert spool.digests(LAYOUT) == (digest(2),)
    assert spool.find(digest(1), LAYOUT) is None


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path):
    def fail(out: Path) -> LayoutHeader:
        out.write_bytes(b"half")
        raise ValueError("no space")

    with pytest.raises(ValueError, match="no space"):
        Spool(tmp_path, 1 << 20).add(digest(1), LAYOUT, fail)
    assert list(tmp_path.iterdir()) == []


def test_half_written_copies_are_swept_at_start(tmp_path: Path):
    (tmp_path / "abc.partial").mkdir()
    Spool(tmp_path, 1 << 20)
    assert list(tmp_path.iterdir()) == []
