"""Manifests, their digest and their signature: every flipped byte is noticed."""

import json
import os
import stat
import threading

import pytest

from openmint.adapters.checks import check_adapter_folder
from openmint.adapters.manifest import Manifest, digest_of
from openmint.adapters.signing import BadKey, SigningKey, TrustedKeys
from openmint.errors import BadAdapter


@pytest.fixture
def manifest(base, draft, tmp_path):
    return Manifest.of(check_adapter_folder(draft.write(tmp_path / "adapter"), base), base.digest)


@pytest.fixture
def key(tmp_path):
    return SigningKey.load_or_create(tmp_path / "keys")


@pytest.fixture
def trusted(tmp_path):
    return TrustedKeys(tmp_path / "keys" / "trusted")


def test_a_manifest_survives_its_bytes_and_names_its_digest(manifest):
    raw = manifest.canonical_bytes()
    assert Manifest.parse(raw) == manifest and manifest.digest() == digest_of(raw)
    assert b" " not in raw and raw == raw.strip()
    assert set(json.loads(raw)) == {
        *("format", "base", "base_digest", "rank", "alpha", "targets", "dtype", "tensors", "files", "no_op")
    }


def test_a_manifest_that_is_not_canonical_is_refused(manifest):
    body = json.loads(manifest.canonical_bytes())
    for raw in (
        json.dumps(body, sort_keys=True).encode(),
        json.dumps(dict(reversed(body.items())), separators=(",", ":")).encode(),
        manifest.canonical_bytes() + b"\n",
    ):
        with pytest.raises(BadAdapter, match="canonical"):
            Manifest.parse(raw)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", 2),
        ("base", "A B"),
        ("base_digest", "md5:1"),
        ("rank", 0),
        ("rank", True),
        ("alpha", -1.0),
        ("targets", []),
        ("dtype", "int8"),
        ("tensors", {}),
        ("files", {}),
        ("made_at", "2026-01-01"),
    ],
)
def test_a_manifest_with_a_wrong_field_is_refused_by_name(field, value, manifest):
    body = json.loads(manifest.canonical_bytes()) | {field: value}
    with pytest.raises(BadAdapter, match=field):
        Manifest.parse(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def test_a_signature_is_of_its_manifest_alone(manifest, key, trusted):
    raw = manifest.canonical_bytes()
    signature = key.sign(raw)
    assert trusted.verify(raw, signature) == key.key_id
    assert key.sign(raw) == signature
    with pytest.raises(BadAdapter, match=r"manifest\.sig"):
        trusted.verify(raw + b" ", signature)
    other = manifest.model_copy(update={"rank": 5}).canonical_bytes()
    with pytest.raises(BadAdapter, match="not a signature"):
        trusted.verify(other, signature)


def test_every_flipped_byte_of_a_signature_file_is_noticed(manifest, key, trusted):
    raw = manifest.canonical_bytes()
    signature = key.sign(raw)
    for position in range(len(signature)):
        spoilt = bytearray(signature)
        spoilt[position] ^= 0x01
        with pytest.raises(BadAdapter):
            trusted.verify(raw, bytes(spoilt))


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b'{"key_id":"../../etc/passwd","signature":""}', b'{"key_id":1,"signature":2}', b"\xff"],
)
def test_a_signature_file_of_another_form_is_refused(content, trusted):
    with pytest.raises(BadAdapter, match=r"manifest\.sig"):
        trusted.verify(b"{}", content)


def test_a_key_that_nobody_trusts_signs_nothing(manifest, trusted, tmp_path):
    stranger = SigningKey.load_or_create(tmp_path / "elsewhere")
    with pytest.raises(BadAdapter, match="not trusted"):
        trusted.verify(b"{}", stranger.sign(b"{}"))


def test_rotation_trusts_a_new_key_at_once_and_a_removed_one_no_more(key, trusted, tmp_path):
    old = key.sign(b"{}")
    assert trusted.verify(b"{}", old)
    new = SigningKey.load_or_create(tmp_path / "new")
    new.publish(tmp_path / "keys" / "trusted")
    assert trusted.verify(b"{}", new.sign(b"{}")) == new.key_id
    (tmp_path / "keys" / "trusted" / f"{key.key_id}.pub").unlink()
    with pytest.raises(BadAdapter, match="not trusted"):
        trusted.verify(b"{}", old)


def test_a_public_key_under_another_id_is_a_broken_key(key, trusted, tmp_path):
    stranger = SigningKey.load_or_create(tmp_path / "elsewhere")
    stranger.publish(tmp_path / "keys" / "trusted")
    folder = tmp_path / "keys" / "trusted"
    (folder / f"{stranger.key_id}.pub").write_text((folder / f"{key.key_id}.pub").read_text())
    with pytest.raises(BadKey):
        trusted.verify(b"{}", stranger.sign(b"{}"))


def test_a_key_file_is_readable_by_its_owner_alone_and_found_again(key, tmp_path):
    path = tmp_path / "keys" / "exporter.ed25519"
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert SigningKey.load_or_create(tmp_path / "keys").key_id == key.key_id
    assert os.listdir(tmp_path / "keys" / "trusted") == [f"{key.key_id}.pub"]  # noqa: PTH208


def test_processes_that_start_together_agree_on_one_key(tmp_path):
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(SigningKey.load_or_create(tmp_path / "k").key_id))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1


def test_a_broken_key_file_is_named(tmp_path):
    (tmp_path / "exporter.ed25519").write_text("nonsense")
    with pytest.raises(BadKey, match=r"exporter\.ed25519"):
        SigningKey.load_or_create(tmp_path)
