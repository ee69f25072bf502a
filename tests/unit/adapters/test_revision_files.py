"""A revision comes out of the store byte for byte as it went in, or not at all."""

import pytest

from openmint.adapters.checks import check_adapter_folder
from openmint.adapters.keys import revision_key
from openmint.adapters.manifest import Manifest
from openmint.adapters.revision_files import delete_revision_files, fetch_revision_folder, put_revision_folder
from openmint.adapters.signing import SigningKey, TrustedKeys
from openmint.adapters.store import Store
from openmint.errors import BadAdapter, NotFound

FILES = ["adapter_config.json", "adapter_model.safetensors", "manifest.json", "manifest.sig"]


def signed(folder, base, key):
    raw = Manifest.of(check_adapter_folder(folder, base), base.digest).canonical_bytes()
    (folder / "manifest.json").write_bytes(raw)
    (folder / "manifest.sig").write_bytes(key.sign(raw))
    return Manifest.parse(raw)


@pytest.fixture
def key(tmp_path):
    return SigningKey.load_or_create(tmp_path / "keys")


@pytest.fixture
def trusted(tmp_path, key):
    return TrustedKeys(tmp_path / "keys" / "trusted")


@pytest.fixture
def store(tmp_path):
    return Store.open((tmp_path / "store").as_uri())


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
async def manifest(base, draft, tmp_path, store, key):
    made = signed(draft.write(tmp_path / "adapter"), base, key)
    await put_revision_folder(store, made.digest(), tmp_path / "adapter")
    return made


async def test_a_revision_comes_back_whole(manifest, store, trusted, out, base, tmp_path):
    assert await fetch_revision_folder(store, manifest.digest(), out, trusted) == manifest
    assert sorted(p.name for p in out.iterdir()) == FILES
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()
    assert check_adapter_folder(out, base, needs_manifest=True).digest == manifest.digest()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["flip", "cut", "grow", "empty"])
async def test_other_bytes_in_the_store_are_refused_by_file(name, how, manifest, store, trusted, out):
    digest = manifest.digest()
    content = bytearray(await store.get_bytes(revision_key(digest, name)))
    if how == "flip":
        content[len(content) // 2] ^= 0x10
    content = {"flip": content, "cut": content[:-1], "grow": content + b" " * 5000, "empty": b""}[how]
    await store.put_bytes(revision_key(digest, name), bytes(content))
    with pytest.raises(BadAdapter, match=f"{name}|{digest}"):
        await fetch_revision_folder(store, digest, out, trusted)


@pytest.mark.parametrize("name", FILES)
async def test_a_missing_file_is_not_found(name, manifest, store, trusted, out):
    await store.delete(revision_key(manifest.digest(), name))
    with pytest.raises(NotFound, match=name):
        await fetch_revision_folder(store, manifest.digest(), out, trusted)


async def test_a_signed_revision_under_another_revisions_digest_is_refused(
    manifest, store, trusted, key, out, base, draft_of, tmp_path
):
    other = signed(draft_of(base, seed=9).write(tmp_path / "other"), base, key)
    await put_revision_folder(store, manifest.digest(), tmp_path / "other")
    with pytest.raises(BadAdapter, match=other.digest()):
        await fetch_revision_folder(store, manifest.digest(), out, trusted)


async def test_a_revision_of_another_base_with_the_same_shapes_is_refused(manifest, store, trusted, out, base):
    await fetch_revision_folder(store, manifest.digest(), out, trusted)
    values = {field: getattr(base, field) for field in base.__slots__} | {"digest": "sha256:" + "b" * 64}
    with pytest.raises(BadAdapter, match="the adapter is of base sha256:aaa"):
        check_adapter_folder(out, type(base)(**values))


@pytest.mark.parametrize(
    ("field", "value"), [("rank", 5), ("alpha", 1.0), ("targets", ["q_proj"]), ("dtype", "float16")]
)
async def test_a_manifest_that_lies_about_its_files_is_refused(field, value, manifest, base, tmp_path):
    lie = manifest.model_copy(update={field: value})
    (tmp_path / "adapter" / "manifest.json").write_bytes(lie.canonical_bytes())
    with pytest.raises(BadAdapter, match=field):
        check_adapter_folder(tmp_path / "adapter", base)


async def test_deleting_takes_every_file(manifest, store):
    await delete_revision_files(store, manifest.digest())
    assert await store.list("revisions/") == []
