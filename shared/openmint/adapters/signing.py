"""Signatures of manifests: Ed25519, one key per exporter, a folder of public keys that verifiers trust.

A key's id is derived from its public half, so a key can be neither renamed nor taken for another. Rotation: trust the
new key everywhere, then sign with it; take the old one away when no revision needs it.
"""

import base64
import binascii
import contextlib
import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any, cast

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from openmint.adapters.escaping import shown
from openmint.adapters.strict_json import NotStrict, read_strict_json
from openmint.errors import BadAdapter, OpenmintError

KEY_FILE = "exporter.ed25519"
TRUSTED_FOLDER = "trusted"
MAX_SIGNATURE_FILE_BYTES = 4096


class BadKey(OpenmintError):
    """A key file can't be used."""


def keys_folder(state_dir: Path) -> Path:
    """Where a local stack keeps its keys."""
    return state_dir / "keys"


class SigningKey:
    """The private half."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self._public = private.public_key().public_bytes_raw()
        self.key_id = key_id_of(self._public)

    @classmethod
    def load_or_create(cls, folder: Path) -> "SigningKey":
        """The key in `folder`, made at the first call; its public half is put among the trusted ones.

        Several processes may call this at once: the first that links its file in place wins. Raises: BadKey.
        """
        path = folder / KEY_FILE
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            made = Ed25519PrivateKey.generate().private_bytes_raw()
            temporary = folder / f".{KEY_FILE}.{secrets.token_hex(4)}"
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
            try:
                with os.fdopen(descriptor, "w") as file:
                    file.write(made.hex())
                    file.flush()
                    os.fsync(file.fileno())
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        key = cls.load(path)
        with contextlib.suppress(PermissionError):  # a read-only mount holds the public half already
            key.publish(folder / TRUSTED_FOLDER)
        return key

    @classmethod
    def load(cls, path: Path) -> "SigningKey":
        """Read a key file: 32 bytes in hexadecimal. Raises: BadKey."""
        try:
            return cls(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text().strip())))
        except (OSError, ValueError) as error:
            raise BadKey(f"signing key {path} can't be used: {type(error).__name__}") from error

    def publish(self, trusted: Path) -> None:
        """Write the public half into a folder of trusted keys."""
        path = trusted / f"{self.key_id}.pub"
        if path.exists():
            return
        trusted.mkdir(parents=True, exist_ok=True)
        temporary = trusted / f".{self.key_id}.{secrets.token_hex(4)}"
        temporary.write_text(self._public.hex())
        temporary.rename(path)

    def sign(self, manifest: bytes) -> bytes:
        """The content of `manifest.sig`; the same bytes give the same signature."""
        signature = base64.b64encode(self._private.sign(manifest)).decode()
        body = {"key_id": self.key_id, "signature": signature}
        return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


class TrustedKeys:
    """The public halves in a folder; a key that was added since is found when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._keys: dict[str, Ed25519PublicKey] = {}

    @classmethod
    def open(cls, state_dir: Path) -> "TrustedKeys":
        """Those of a local stack."""
        return cls(keys_folder(state_dir) / TRUSTED_FOLDER)

    def verify(self, manifest: bytes, signature_file: bytes) -> str:
        """Check the content of `manifest.sig` against the bytes of `manifest.json`; the id of the key.

        Raises: BadAdapter when the signature can't be read, its key is not trusted, or it is of other bytes.
        """
        try:
            body = read_strict_json(signature_file[: MAX_SIGNATURE_FILE_BYTES + 1])
        except NotStrict as error:
            raise BadAdapter(f"manifest.sig is {error}", field="manifest.sig") from error
        fields = cast(dict[str, Any], body) if isinstance(body, dict) else {}
        key_id, text = fields.get("key_id"), fields.get("signature")
        if set(fields) != {"key_id", "signature"} or not isinstance(key_id, str) or not isinstance(text, str):
            raise BadAdapter("manifest.sig has not exactly a key_id and a signature", field="manifest.sig")
        try:
            signature = base64.b64decode(text, validate=True)
            self._key(key_id).verify(signature, manifest)
        except (binascii.Error, InvalidSignature, ValueError) as error:
            raise BadAdapter("manifest.sig is not a signature of manifest.json", field="manifest.sig") from error
        return key_id

    def _key(self, key_id: str) -> Ed25519PublicKey:
        if not (len(key_id) == 16 and all(character in "0123456789abcdef" for character in key_id)):
            raise BadAdapter(f"manifest.sig: {shown(key_id)} is not a key id", field="manifest.sig")
        path = self._folder / f"{key_id}.pub"
        if not path.exists():
            # Asked each time, so that a key that was taken away is trusted no more.
            self._keys.pop(key_id, None)
            raise BadAdapter(f"manifest.sig: key {key_id} is not trusted here", field="manifest.sig")
        if key_id not in self._keys:
            try:
                raw = bytes.fromhex(path.read_text().strip())
                key = Ed25519PublicKey.from_public_bytes(raw)
            except (OSError, ValueError) as error:
                raise BadKey(f"trusted key {path} can't be used: {type(error).__name__}") from error
            if key_id_of(raw) != key_id:
                raise BadKey(f"trusted key {path} holds another key than its name says")
            self._keys[key_id] = key
        return self._keys[key_id]


def key_id_of(public: bytes) -> str:
    """The first 16 hexadecimal characters of the sha256 of the public half."""
    return hashlib.sha256(public).hexdigest()[:16]
