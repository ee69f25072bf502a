"""The store on a local folder: whole or absent, bounded, with our errors; and how remote ones are opened."""

import asyncio
import os

import pytest

from openmint.adapters import keys
from openmint.adapters.store import PARTIAL_FOLDER, Store
from openmint.errors import BadName, NotFound, StoreUnavailable, TooLarge
from openmint.identifiers import new_id


@pytest.fixture
def root(tmp_path):
    return tmp_path / "a folder with blanks"


@pytest.fixture
def store(root):
    return Store.open(root.as_uri())


async def test_bytes_come_back(store):
    await store.put_bytes("a/b/c.bin", b"hello")
    assert await store.get_bytes("a/b/c.bin") == b"hello"
    assert await store.exists("a/b/c.bin") and await store.size("a/b/c.bin") == 5
    assert not await store.exists("a/b") and not await store.exists("a/x")


async def test_a_file_comes_back_and_leaves_nothing_beside_it(store, root, tmp_path):
    source, target = tmp_path / "source", tmp_path / "out" / "target"
    source.write_bytes(os.urandom(9_000_001))
    target.parent.mkdir()
    await store.put_file("x.bin", source)
    assert await store.fetch_to("x.bin", target) == 9_000_001
    assert target.read_bytes() == source.read_bytes()
    assert [p.name for p in target.parent.iterdir()] == ["target"]
    assert list((root / PARTIAL_FOLDER).iterdir()) == []


async def test_listing_is_by_folder_sorted_and_hides_what_is_being_written(store, root):
    for key in ("a/2", "a/1", "ab/3", "b"):
        await store.put_bytes(key, b"")
    (root / PARTIAL_FOLDER / "left").write_bytes(b"half")
    assert await store.list("a/") == ["a/1", "a/2"]
    assert await store.list("") == ["a/1", "a/2", "ab/3", "b"]
    assert await store.list("nothing/") == []


async def test_deleting_twice_is_fine(store):
    await store.put_bytes("a/b", b"x")
    await store.delete("a/b")
    await store.delete("a/b")
    assert not await store.exists("a/b")


async def test_what_is_not_there_is_named(store, tmp_path):
    with pytest.raises(NotFound, match="a/b"):
        await store.get_bytes("a/b")
    with pytest.raises(NotFound, match="a/b"):
        await store.fetch_to("a/b", tmp_path / "t")
    assert not (tmp_path / "t").exists()


async def test_more_than_the_cap_is_refused_and_leaves_no_file(store, tmp_path):
    await store.put_bytes("a", bytes(1000))
    assert len(await store.get_bytes("a", 1000)) == 1000
    with pytest.raises(TooLarge, match="1000 bytes"):
        await store.get_bytes("a", 999)
    with pytest.raises(TooLarge):
        await store.fetch_to("a", tmp_path / "t", max_bytes=999)
    assert [p for p in tmp_path.iterdir() if p.is_file()] == []


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../b", ".partial/x", "a\\b", "a b", "a\n", "a\x00", "é", "x" * 600]
)
async def test_a_key_that_could_leave_the_store_is_refused(key, store):
    with pytest.raises(BadName):
        await store.put_bytes(key, b"")


async def test_readers_see_the_old_or_the_new_bytes_and_nothing_else(store):
    old, new = b"a" * 300_000, b"b" * 300_000
    await store.put_bytes("k", old)
    seen = set()

    async def write():
        for round in range(20):
            await store.put_bytes("k", new if round % 2 == 0 else old)

    writing = asyncio.create_task(write())
    while not writing.done():
        seen.add(await store.get_bytes("k"))
    await writing
    assert seen <= {old, new}


async def test_a_full_or_broken_disk_is_unavailable_and_shows_no_half_file(store, root, tmp_path):
    await store.put_bytes("a/k", b"x")
    (root / "blocked").write_bytes(b"a file where a folder is wanted")
    with pytest.raises(StoreUnavailable, match="blocked/k"):
        await store.put_bytes("blocked/k", b"y")
    with pytest.raises(NotFound):
        await store.put_file("c", tmp_path / "no-such-source")
    assert await store.list("") == ["a/k", "blocked"]
    assert list((root / PARTIAL_FOLDER).iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
async def test_no_space_left_is_unavailable(store, tmp_path, monkeypatch):
    real = os.fsync

    def full(descriptor):
        real(descriptor)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreUnavailable, match="No space left"):
        await store.put_bytes("k", b"x")
    assert not await store.exists("k")


async def test_what_dead_writers_left_is_swept(store, root):
    await store.put_bytes("k", b"x")
    left = root / PARTIAL_FOLDER / "left"
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    assert await store.delete_partial(before_s=1000) == 1
    assert not left.exists() and await store.exists("k")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/plain/path",
        "file://host/path",
        "file:relative",
        "http://x/y",
        "s3://",
        "s3://key:secret@bucket/p",
        "ftp://x",
    ],
)
def test_a_url_that_can_not_be_a_store_is_refused_without_its_secrets(url):
    with pytest.raises(BadName) as caught:
        Store.open(url)
    assert "secret" not in caught.value.detail


def test_remote_stores_are_opened_from_options_and_from_the_environment(monkeypatch):
    options = {"endpoint": "http://127.0.0.1:9", "access_key_id": "id", "secret_access_key": "key", "region": "r"}
    assert Store.open("s3://bucket/prefix", options).url == "s3://bucket/prefix"
    for name, value in options.items():
        monkeypatch.setenv(f"AWS_{name.upper()}", value)
    assert Store.open("s3://bucket").url == "s3://bucket"


def test_an_unknown_option_is_refused():
    with pytest.raises(BadName, match="can't be opened"):
        Store.open("s3://bucket", {"no_such_option": "x"})


def test_keys_are_those_of_the_contract():
    digest, number = "sha256:" + "0f" * 32, new_id()
    assert keys.dataset_key("acme", digest) == f"datasets/acme/{'0f' * 32}.jsonl"
    assert keys.checkpoint_key(number, 3, 400) == f"checkpoints/{number}/3/step-400.safetensors"
    assert keys.revision_key(digest, "manifest.json") == f"revisions/{'0f' * 32}/manifest.json"
    assert keys.evaluation_key(number) == f"evaluations/{number}/report.json"
    for bad in ("..", "a/b", "A"):
        with pytest.raises(BadName):
            keys.dataset_key(bad, digest)
    with pytest.raises(BadName):
        keys.revision_prefix("sha256:../x")
